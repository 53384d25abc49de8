"""What does not go with how a model is spread is refused before anything is built."""

import pytest

from dinoswap.build import build_trainer
from dinoswap.config.configuration import plain
from dinoswap.config.identity import identity
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from small_models import composed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["da3=enabled", "da3.use_fsdp=true"], "da3.use_fsdp=true: .*; choose distributed=fsdp2"),
        (["distributed=ddp", "distributed.timeout_minutes=0.0"], "distributed.timeout_minutes=0.0: must be above 0"),
        (["distributed=ddp", "distributed.bucket_mb=0"], "distributed.bucket_mb=0: must be at least 1"),
        (
            ["distributed=fsdp2", "distributed.param_dtype=bf16"],
            "param_dtype=bf16: .*precision=fp32; use fp32, or null",
        ),
        (
            ["distributed=fsdp2", "trainer.precision=bf16_params", "distributed.param_dtype=fp32"],
            "param_dtype=fp32: .* trainer.precision=bf16_params; use bf16, or null",
        ),
        (["distributed=fsdp2", "distributed.param_dtype=bf61"], "distributed.param_dtype=bf61: .*Did you mean 'bf16'"),
        (["distributed=ddp", "+distributed.buckets=3"], "distributed.buckets=3: there is no such key"),
    ],
)
def test_refused(overrides: list[str], message: str) -> None:
    cfg = plain(composed(["recipe=smoke", *overrides]))
    with pytest.raises(ConfigError, match=message):
        check(cfg)
        build_trainer(cfg)


def test_several_processes_without_a_way_to_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"distributed=none: 2 processes were started .*; choose distributed=ddp"):
        build_trainer(plain(composed(["recipe=smoke"])))


def test_it_is_no_part_of_what_a_run_is() -> None:
    """So that a run goes on with another number of ranks, spread in another way."""
    spread = ["distributed=none", "distributed=ddp", "distributed=fsdp2 distributed.param_dtype=fp32"]
    configs = [plain(composed([f"trainer.precision={name}", *s.split()])) for name in ("fp32", "bf16") for s in spread]
    assert not any(key.startswith("distributed") for config in configs for key in identity(config))
