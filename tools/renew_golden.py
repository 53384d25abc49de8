"""Write what tests compare with.

    python tools/renew_golden.py [--losses]

tests/golden/configs   the resolved config of every preset with some recipes, a line per key
configs/identity.json  what is new, with its value: no entry is ever changed
tests/golden/losses    twenty steps of every preset, and of every flip that changes it: a minute, so only when asked for
README.md              the table of axes

The difference in git then shows what a change does to each preset, and which arms it moves.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import yaml

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir, flatten
from dinoswap.config.explain import markdown
from dinoswap.config.facts import build_source
from versioned_defaults import NAME, appended, as_text, present

ROOT = Path(__file__).resolve().parents[1]
GOLDEN, LOSSES = ROOT / "tests" / "golden" / "configs", ROOT / "tests" / "golden" / "losses"
README = ROOT / "README.md"
BEGIN, END = "<!-- axes: written by tools/renew_golden.py -->", "<!-- /axes -->"
RECIPES = ("smoke", "vits16")
TWENTY_STEPS = [
    "recipe=smoke", "trainer.max_steps=20", "trainer.device=cpu", "data.batch_size=4", "schedule.freeze_last_layer=2",
]  # fmt: skip

# With a LayerScale of 1e-5 the class tokens of all images begin as one, and rounding decides which is KoLeo's nearest.
WITHOUT_TIES = {"flip=details_layerscale_1e-5": ["objectives.koleo.loss_weight=0"]}


def golden_configs() -> dict[str, str]:
    """File name -> YAML."""
    presets = sorted(path.stem for path in (config_dir() / "preset").glob("*.yaml"))
    return {
        f"{preset}-{recipe}.yaml": yaml.safe_dump(
            flatten(compose_config([f"preset={preset}", f"recipe={recipe}"])), default_flow_style=None, sort_keys=False
        )
        for preset in presets
        for recipe in RECIPES
    }


def arms() -> Iterator[tuple[str, list[str]]]:
    """Name and overrides of every preset, and of every flip with official and legacy that changes them."""
    flips = sorted(path.stem for path in (config_dir() / "flip").glob("*.yaml"))
    for preset in ("official", "legacy", "aligned"):
        plain = resolved((f"preset={preset}",))
        for flip in flips if preset != "aligned" else ["none"]:
            overrides = [f"preset={preset}", f"flip={flip}"]
            if flip == "none" or resolved(tuple(overrides)) != plain:
                yield f"{preset}-{flip}" if flip != "none" else preset, overrides


@cache
def resolved(overrides: tuple[str, ...]) -> dict[str, object]:
    """Flat, less what is mounted for an objective that does not exist."""
    config = compose_config([*TWENTY_STEPS, *overrides])
    config["objectives"] = {name: section for name, section in config["objectives"].items() if "_target_" in section}
    return flatten(config)


def golden_losses(overrides: list[str]) -> str:
    """A line per step: the step and its loss, as many digits as float32 has."""
    cfg = compose_config([*TWENTY_STEPS, *overrides, *WITHOUT_TIES.get(overrides[1], [])])
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(build_source(cfg).train())
    mean, std = (torch.tensor(cfg["data"][key]) for key in ("mean", "std"))
    losses = [trainer.step(step, [dataset[step].normalised(mean, std)])["loss"] for step in range(20)]
    return "".join(f"{step} {float(loss):.9g}\n" for step, loss in enumerate(losses))


def write_losses() -> None:
    LOSSES.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.txt": golden_losses(overrides) for name, overrides in arms()}
    for outdated in (path for path in LOSSES.iterdir() if path.name not in texts):
        outdated.unlink()
    for name, text in texts.items():
        (LOSSES / name).write_text(text)


def write_identity() -> None:
    path = config_dir() / NAME
    path.write_text(as_text(appended(json.loads(path.read_text()), present())))


def readme_with_axes() -> str:
    """README.md with the table of axes as configs/ describes them."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"


def main() -> None:
    write_identity()
    README.write_text(readme_with_axes())
    GOLDEN.mkdir(parents=True, exist_ok=True)
    configs = golden_configs()
    for outdated in (path for path in GOLDEN.iterdir() if path.name not in configs):
        outdated.unlink()
    for name, text in configs.items():
        (GOLDEN / name).write_text(text)
        print(GOLDEN / name)
    if "--losses" in sys.argv:
        write_losses()


if __name__ == "__main__":
    main()
