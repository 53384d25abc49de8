"""tools/check_parity.py --device: all that is compared is computed on that device, where one is pretended."""

from pathlib import Path

import pytest
import torch

from check_parity import rows_of
from parity import dinov3_losses, dinov3_networks, networks
from parity.dinov3_run import Dinov3File, reasons_to_leave_out
from pretended_device import CPU, DevicesMixed, pretended_device
from small_models import load_tool

PARITY = Path(__file__).parents[1] / "parity"
COMPARED = [
    ("official", "train_step_dinov2", "center_sep"),
    ("official", "losses_dinov2", None),
    ("legacy", "train_step_legacy_masked", None),
    ("dinov3", "train_step_dinov3", "gram_ema"),
    ("dinov3", "vit_dinov3", "rope_bf16"),
]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # but the values are copied all the same
@pytest.mark.parametrize(("kind", "name", "scenario"), COMPARED)
def test_nothing_is_left_on_the_cpu(kind: str, name: str, scenario: str | None) -> None:
    with pretended_device() as device:
        rows = list(rows_of(kind, PARITY / kind, name, scenario, device))
    assert rows
    assert [row.name for row in rows if not row.passed] == []
    assert torch.get_default_device() == CPU
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_device_pretends_well() -> None:
    with pretended_device() as device:
        tensor = torch.arange(3.0, device=device)
        assert (tensor + 1).device == device
        assert float((2 * tensor).sum()) == 6
        assert torch.equal(tensor.cpu(), torch.arange(3.0))
        with pytest.raises(DevicesMixed):
            tensor + torch.ones(3)


def test_what_was_drawn_on_a_cpu_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    dinov3 = PARITY / "dinov3"
    made = {
        dinov3_networks.scenarios: dinov3 / "vit_dinov3.npz",
        dinov3_losses.scenarios: dinov3 / "losses_dinov3.npz",
        networks.droppath_scenarios: PARITY / "official" / "droppath.npz",
    }
    left_out = []
    for scenarios, path in made.items():
        with_draws = set(scenarios(path))
        with torch.device("meta"):
            left_out += with_draws - set(scenarios(path))
    assert {"rope_augmented", "rope_and_drop_path", "rope train_all_seed7", "two_ranks", "rate0.3"} <= {*left_out}
    assert "rope_bf16" not in left_out
    assert capsys.readouterr().err.count("left out") == len(left_out)
    file = Dinov3File(dinov3 / "train_step_dinov3.npz")
    with torch.device("meta"):
        drawn = {name for name in file.meta["configs"] if any(reasons_to_leave_out(file, name).values())}
    assert drawn == {"web", "distil"}


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["official", "--dir", str(PARITY / "official"), "--device", "cuda"]
    with pytest.raises(SystemExit):
        load_tool("check_parity").main(arguments)
    assert "this machine has no CUDA device" in capsys.readouterr().err
