"""tools/axes_page.py: every option is on the page, and what it says and draws agrees with a recount."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from dinoswap.config.configuration import config_dir, flatten, plain
from dinoswap.config.explain import options, presets
from dinoswap.masking.batch_policy import Generators
from dinoswap.rng import numpy_generator, python_generator
from options import build_option
from pages import masks, optimiser, passes, reductions, views, words
from small_models import composed, load_tool

STEPS = 4
AXES = presets()["official"]
COMMITTED = Path(__file__).parents[2] / "results" / "reference" / "axes"


class Page(NamedTuple):
    folder: Path
    text: str


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("axes") / "page"
    assert load_tool("axes_page").main(["-o", str(folder), "--steps", str(STEPS)]) == 0
    return Page(folder, (folder / "README.md").read_text())


@pytest.mark.parametrize("axis", AXES)
def test_every_option_is_on_the_page(axis: str, page: Page) -> None:
    """On the committed one too. Where this fails: python tools/axes_page.py -o results/reference/axes."""
    committed = (COMMITTED / "README.md").read_text()
    for option in options(axis):
        for text in (page.text, committed):
            line = next(
                line for line in text.splitlines() if line.startswith(f"- **`{option.name}`**") and option.does in line
            )
            assert option.source in line
            assert all(side in line for side in option.sides)


def test_the_page_shows_its_pictures_and_its_command(page: Page) -> None:
    pictures = {path.name for path in page.folder.glob("*.png")}
    assert (
        set(re.findall(r"\]\((\w+\.png)\)", page.text)) == pictures == {path.name for path in COMMITTED.glob("*.png")}
    )
    assert len(pictures) == 11
    assert sum(path.stat().st_size for path in COMMITTED.glob("*.png")) < 1.5e6
    assert f"`python tools/axes_page.py -o {page.folder} --steps {STEPS}`" in page.text.splitlines()[2]


def test_a_picture_is_the_same_every_time(page: Page, tmp_path: Path) -> None:
    masks.clustering(tmp_path)
    assert (tmp_path / "clustering.png").read_bytes() == (page.folder / "clustering.png").read_bytes()


# --- masking ----------------------------------------------------------------------------------------------------------


def cells(text: str, name: str) -> list[str]:
    """The row of a table that begins with `name`."""
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@pytest.mark.parametrize("name", ["block", "block_exact", "block_accumulate", "inverse_block"])
def test_the_numbers_of_masks_with_a_target(name: str, page: Page) -> None:
    """32 of the 64 crops of a step, their targets and masks drawn here one after another."""
    option = build_option(f"masking/{name}")
    generator, targets, counts, centre, corner = option.generator((224, 224), 16), [], [], [], []
    for step in range(STEPS):
        fill = np.random.RandomState(numpy_generator(0, "mask", step).bit_generator)
        rng = Generators(python_generator(0, "mask", step), fill)
        for target in option.targets(32, 196, rng):
            mask = generator(target, rng)
            targets.append(target)
            counts.append(int(mask.sum()))
            centre += [mask[6, 6], mask[6, 7], mask[7, 6], mask[7, 7]]
            corner += [mask[0, 0], mask[0, 13], mask[13, 0], mask[13, 13]]
    above = sum(count > target for count, target in zip(counts, targets, strict=True)) / len(counts)
    below = sum(count < target for count, target in zip(counts, targets, strict=True)) / len(counts)
    shares = 0.5, np.mean(targets) / 196, np.mean(counts) / 196, above, below, np.mean(centre), np.mean(corner)
    assert cells(page.text, name) == [str(32 * STEPS), *(percent(float(share)) for share in shares)]


def test_the_numbers_of_masks_without_a_target(page: Page) -> None:
    sampler = build_option("masking/bernoulli").sampler(crop_size=(224, 224), patch_size=16, crops=2, images=32, seed=0)
    counts = [int(count) for step in range(STEPS) for count in sampler(step).sum(-1).flatten()]
    above = sum(count > 0.4 * 196 for count in counts) / len(counts)
    shares = [percent(share) for share in (1.0, 0.4, sum(counts) / 196 / len(counts), above, 1 - above)]
    assert cells(page.text, "bernoulli")[:6] == [str(64 * STEPS), *shares]


# --- forward, clustering, reduction -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("unified", ["global+mask: class patch", "local: class"], ["global: class patch"]),
        ("two_pass", ["global: class", "global+mask: patch", "local: class"], ["global: class patch"]),
        ("global_3", ["global: class", "extra+mask: patch", "local: class"], ["global: class", "extra: patch"]),
    ],
)
def test_which_network_gets_what(name: str, student: list[str], teacher: list[str]) -> None:
    plan = words.built("forward", name)
    for network, expected in (("student", student), ("teacher", teacher)):
        found = passes.passes(plan, network, passes.batch_of(plan))
        assert [f"{p.role}{'+mask' * p.masked}: {' '.join(p.losses)}" for p in found] == expected


def test_which_positions_learn() -> None:
    batch = passes.batch_of(words.built("forward", "unified"))
    mask = batch.mask.numpy().reshape(2, 14, 14)
    expected = {"none": mask & False, "masked": mask, "visible": ~mask, "separate": mask | True}
    for name, where in expected.items():
        learns, own_pass = masks.learning(name, batch)
        assert np.array_equal(learns, where), name
        assert own_pass == (name == "separate")


def test_the_weight_of_a_patch() -> None:
    counts = np.array([0, 20, 59, 98])
    once = np.array([0, 1 / 20, 1 / 59, 1 / 98])
    expected = {"per_sample": once / 4, "per_token": (counts > 0) / 177, "weighted_token_mean": once / 177}
    for name, weights in expected.items():
        np.testing.assert_allclose(reductions.weights(name), weights, rtol=1e-6)


@pytest.mark.parametrize("side", ["official", "legacy"])
def test_what_is_cut_from_what(side: str) -> None:
    """The outlines lie where the crops come from: on the photograph, or on the square that it is squashed to."""
    image = views.photograph()
    height, width = views.squashed(side, image).shape[:2]
    assert (height, width) == ((224, 224) if side == "legacy" else image.shape[:2])
    for position in range(20):
        for crop, _ in views.augmentation_of(side).draw(numpy_generator(0, "augment", position), *image.shape[:2]):
            assert crop.top + crop.height <= height
            assert crop.left + crop.width <= width


# --- schedules and settings -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sides() -> dict[str, optimiser.Training]:
    return optimiser.both_sides()


def test_lr_and_weight_decay_over_training(sides: dict[str, optimiser.Training]) -> None:
    """Formulas of both sides for vits16: 125000 steps of 1024 images, 12 blocks, warm-up of a tenth."""
    for side, peak in {"official": 4e-3, "legacy": 4e-3 * 1024 / 256}.items():
        run = sides[side]
        multiplier = {"patch embedding": 0.2 * 0.9**13, "tokens and positions": 0.9**13, "block 6": 0.9**7, "heads": 1}
        progress = np.clip((run.steps - 12500) / 112500, 0, None)
        cosine = 1e-6 + (peak - 1e-6) * (1 + np.cos(np.pi * progress)) / 2
        lr = np.where(run.steps < 12500, peak * run.steps / 12499, cosine)
        for name, factor in multiplier.items():
            group = run.of(optimiser.LR[name])
            assert group is not None
            np.testing.assert_allclose(group["lr"], lr * (factor if side == "official" else 1), rtol=1e-9)
        heads = run.of(optimiser.DECAY["heads: weights"])
        assert heads is not None
        decay = 0.4 - 0.36 * (1 + np.cos(np.pi * run.steps / 125000)) / 2
        np.testing.assert_allclose(heads["weight_decay"], decay if side == "official" else 0.01, rtol=1e-9)
    bank = sides["legacy"].of(optimiser.LR["prototype bank"])
    assert bank is not None
    assert bank["lr"].max() == pytest.approx(2e-3, rel=1e-4)
    assert sides["official"].of(optimiser.LR["prototype bank"]) is None


def test_every_group_is_in_a_panel(sides: dict[str, optimiser.Training]) -> None:
    """But for blocks: each shown lr and weight decay stands for all groups of its kind."""
    for run in sides.values():
        for key, panels in {"lr": optimiser.LR, "weight_decay": optimiser.DECAY}.items():
            shown = [group[key] for group in map(run.of, panels.values()) if group]
            for group in run.groups:
                if key == "weight_decay" or not any(".blocks." in name for name in group["names"]):
                    assert any(np.array_equal(group[key], values) for values in shown), group["names"][0]


def details(text: str) -> list[list[str]]:
    """Rows of the table of settings: override, words, keys, values of both sides."""
    _, table = text.split("| override | what it does |")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [[row[0].strip("`"), row[1], *(cell.replace("`", "") for cell in row[2:])] for row in rows]


def test_every_detail_is_in_the_table_with_a_switch_of_its_own(page: Page) -> None:
    rows = details(page.text)
    listed = [key for row in rows for key in row[2].split("<br>")]
    written = yaml.safe_load((config_dir() / "details" / "legacy.yaml").read_text())
    mounted = {f"objectives.{name}" for name in ("dino.targets.iterations", "clustering.targets._target_")}
    own = set(flatten({key: value for key, value in written.items() if key != "defaults"}))
    of_schedule = yaml.safe_load((config_dir() / "details" / "schedule" / "legacy_cosine.yaml").read_text())
    own |= {f"schedule.{key}" for key in of_schedule}
    assert set(listed) == own | mounted | {"objectives.clustering.targets.eps"}
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    "switch",
    [
        "model.residual_dropout=0.4 model.drop_path=0.0 teacher_dropout=true",
        "targets@objectives.clustering.targets=sinkhorn_floored",
    ],
)
def test_a_row_is_what_its_switch_changes(switch: str, page: Page) -> None:
    before, after = (flatten(plain(composed(["recipe=none", *own]))) for own in ([], switch.split()))
    row = next(row for row in details(page.text) if row[0] == switch)
    keys = row[2].split("<br>")
    assert set(keys) == {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    for cell, side in zip(row[3:], (before, after), strict=True):
        assert cell.split("<br>") == [words.value(side.get(key, "-")) for key in keys]
