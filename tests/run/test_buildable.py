"""What a study refuses before its first run, because no run could be built with it, and what it lets pass though files
are not here."""

import pytest
import torch

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.run import buildable
from dinoswap.run.buildable import require_buildable

REFUSED_BY_CONSTRUCTORS = {
    "objectives.dino.student_temp=-1": "objectives.dino.student_temp=-1.0: a temperature must be above 0",
    "targets@objectives.dino.targets=centering objectives.dino.targets.momentum=1.0": "objectives.dino.targets.moment",
    "objectives.koleo.loss_weight=-1": "objectives.koleo.loss_weight=-1.0",
    "heads.dino_head.layers=0": "heads.dino_head.layers=0",
    "da3=enabled da3.pool=0": "da3.pool=0: must be at least 1",
    "da3=enabled da3.grid_matching=resize_tokens da3.input_size=-14": "da3.input_size=-14",
    "augmentation.global_crops_scale=[0.9,0.1]": "augmentation.global_crops_scale=",
    "masking.mask_ratio_min_max=[0.5,0.1]": "masking.mask_ratio_min_max=",
    "gram=snapshot objectives.gram.crop_scale=0.3": "objectives.gram.crop_scale=0.3: makes crops of",
    "gram=snapshot objectives.gram.refresh_first=10": "objectives.gram.refresh_first=10: no step",
    "schedule.teacher_temp=0": "schedule.teacher_temp=0",
}


@pytest.mark.parametrize("overrides", REFUSED_BY_CONSTRUCTORS)
def test_a_value_that_a_constructor_refuses_is_named(overrides: str) -> None:
    cfg = compose_config(["recipe=smoke", *overrides.split()], strict=False)
    with pytest.raises(ConfigError) as refused:
        check(cfg)
        require_buildable(cfg)
    assert str(refused.value).startswith(REFUSED_BY_CONSTRUCTORS[overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        "start=weights start.path=/nowhere/vit.safetensors start.architecture=as_configured",
        "da3=enabled da3.ckpt_path=/nowhere/da3.safetensors da3.embed_dim=null",
        "da3=enabled da3.grid_matching=resize_tokens da3.input_size=32 da3.ckpt_path=/nowhere/da3.safetensors",
        "preset=dinov3 gram=snapshot objectives.gram.path=/nowhere/gram.safetensors",
        "data=image_folder data.path=/nowhere",
    ],
)
def test_files_that_are_elsewhere_are_not_asked_for(overrides: str) -> None:
    cfg = compose_config(["recipe=smoke", *overrides.split()], strict=False)
    require_buildable(cfg)


def test_a_network_that_needs_values_is_left_to_its_run_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(buildable, "build_model", lambda cfg: torch.ones(1).item())
    require_buildable(compose_config(["recipe=smoke"]))
    assert "not checked before its run begins: Tensor.item() cannot be called on meta tensors" in caplog.text
