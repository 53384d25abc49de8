"""Write what tests compare with.

    python tools/renew_golden.py [--losses]

tests/golden/configs   the resolved config of every preset with some recipes, a line per key
configs/identity.json  what is new, with its value: no entry is ever changed
tests/golden/losses    twenty steps of each preset; two of arms in which each pair of options occurs: if asked for
configs/README.md      the table of axes

The difference in git then shows what a change does to each preset, and which arms it moves.
"""

import json
import sys
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
PAIRS = LOSSES / "pairs.txt"
AXES = ROOT / "configs" / "README.md"
BEGIN, END = "<!-- axes: written by tools/renew_golden.py -->", "<!-- /axes -->"
RECIPES = ("smoke", "vits16")
TWENTY_STEPS = [
    "recipe=smoke", "trainer.max_steps=20", "trainer.device=cpu", "data.batch_size=4", "schedule.freeze_last_layer=2",
]  # fmt: skip


def preset_names() -> list[str]:
    """Returns the names of all presets, sorted."""
    return sorted(path.stem for path in (config_dir() / "preset").glob("*.yaml"))


def golden_configs() -> dict[str, str]:
    """Returns the resolved config of each preset with each recipe as YAML, by the name of its file."""
    return {
        f"{preset}-{recipe}.yaml": yaml.safe_dump(
            flatten(compose_config([f"preset={preset}", f"recipe={recipe}"])), default_flow_style=None, sort_keys=False
        )
        for preset in preset_names()
        for recipe in RECIPES
    }


def golden_losses(preset: str) -> str:
    """Returns a line for each step: the step and its loss, with as many digits as float32 has."""
    cfg = compose_config([*TWENTY_STEPS, f"preset={preset}"])
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(build_source(cfg).train())
    mean, std = (torch.tensor(cfg["data"][key]) for key in ("mean", "std"))
    losses = [trainer.step(step, [dataset[step].normalised(mean, std)])["loss"] for step in range(20)]
    return "".join(f"{step} {float(loss):.9g}\n" for step, loss in enumerate(losses))


def golden_pairs() -> str:
    """Returns a line for each arm, such that each pair of options occurs in one: the losses of its two steps, and its
    overrides."""
    sys.path.insert(0, str(ROOT / "tests"))
    from axis_arms import PAIRWISE, PairwiseArm

    lines = []
    for choices in PAIRWISE:
        arm = PairwiseArm(choices)
        losses = [f"{float(arm.step(step)['loss']):.9g}" for step in range(2)]
        lines.append(f"{' '.join([*losses, *arm.overrides])}\n")
    return "".join(lines)


def write_losses() -> None:
    """Writes the losses of all presets and arms."""
    for preset in preset_names():
        (LOSSES / f"{preset}.txt").write_text(golden_losses(preset))
    PAIRS.write_text(golden_pairs())


def write_identity() -> None:
    """Appends to identity.json the keys that it lacks."""
    path = config_dir() / NAME
    path.write_text(as_text(appended(json.loads(path.read_text()), present())))


def page_of_axes() -> str:
    """Returns configs/README.md with the table of axes as configs/ describes them."""
    before, _, rest = AXES.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"


def main() -> None:
    write_identity()
    AXES.write_text(page_of_axes())
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
