"""Imports go to the same or a lower layer, options do not know of each other, and configs/ and the package mirror each
other: configs/<group>/<option>.yaml describes a class of dinoswap/<group>/<option>.py.
"""

import ast
import graphlib
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

import dinoswap
from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import MISSING, checked, option_class

PACKAGE = Path(dinoswap.__file__).parent

FLOORS = {
    9: "__init__",
    8: "train evaluate export embed backbone studies",
    7: "run",
    6: "build",
    5: "trainer evaluation",
    4: "config",
    3: "model clustering da3 gram metric dense depth",
    2: "objectives forward teacher optim schedule layer_decay weight_decay data start",
    1: "nn position resolution masking reduction targets augmentation tracker",
    0: "values photometry rng distributed files web __version__",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}

KNOW_HYDRA = ("train", "evaluate", "build", "config", "run", "studies")

BUNDLES = ("preset", "details", "recipe", "hydra")  # groups that choose options and have none of their own
ABSENT = ("none", "disabled")  # options that are the absence of something, without a module
NUMBERED = re.compile(r"(\w+)_(\d+)")  # sinkhorn_5: the module of sinkhorn, with another number
GROUPS = sorted(path.name for path in config_dir().iterdir() if path.is_dir() and path.name not in BUNDLES)
OPTIONS = sorted((group, path.stem) for group in GROUPS for path in (config_dir() / group).glob("*.yaml"))
MODULES = sorted(PACKAGE.rglob("*.py"))

NOT_ARGUMENTS = ("defaults", "enabled")  # of an option's class: what it mounts, and whether it is built

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# What the builder gives to the options of a group, beside what their YAML says
GIVEN = {
    "augmentation": {
        "global_crops_size", "local_crops_size", "local_crops_number", "extra_crops", "clean_sizes",
    },
    "targets": {"prototypes"},
    "clustering": {"targets", "reduction"},
    "da3": {"reduction", "teacher", "mean", "std"},
    "teacher": {"ckpt_path"},
    "data": {"decoding"},
    "metric": {"dense", "depth"},
}  # fmt: skip


def parts(path: Path) -> tuple[str, ...]:
    """dinoswap/data/order.py -> ("data", "order")"""
    return path.relative_to(PACKAGE).with_suffix("").parts


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of all that a module imports, wherever in it."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def imported_of_ours(path: Path) -> set[str]:
    """Rooms: folders of the package, and modules at its root."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("dinoswap.")}


def test_every_room_has_a_floor() -> None:
    assert {parts(path)[0] for path in MODULES} | {"__version__"} == {*FLOOR}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(parts(path)))
def test_imports_go_down(path: Path) -> None:
    here = FLOOR.get(parts(path)[0], 0)
    upwards = {room for room in imported_of_ours(path) if FLOOR[room] > here}
    assert not upwards


def test_no_circle_of_rooms() -> None:
    """Nor among those of one floor."""
    imports: dict[str, set[str]] = {room: set() for room in FLOOR}
    for path in MODULES:
        imports.setdefault(parts(path)[0], set()).update(imported_of_ours(path) - {parts(path)[0]})
    assert tuple(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError


@pytest.mark.parametrize("group", GROUPS)
def test_option_packages_do_not_import_each_other(group: str) -> None:
    """But for the base class of what is mounted into their sections, and what all of them read: images, and the files
    that they are in, by the modules of `data` that are no options."""
    others = set(GROUPS) - {group, "distributed"}  # where the collectives are, too
    for path in (PACKAGE / group).glob("**/*.py"):
        names = (name.split(".") for name in imported(path) if name.startswith("dinoswap."))
        rooms = {
            room
            for _, room, *rest in names
            if rest[:1] != ["base"] and (room != "data" or (room, *rest[:1]) in OPTIONS)
        }
        assert not rooms & others, path


def test_only_the_upper_layers_know_hydra() -> None:
    for path in MODULES:
        uses_hydra = any(re.match(r"(hydra|omegaconf)\b", name) for name in imported(path))
        assert not uses_hydra or parts(path)[0] in KNOW_HYDRA, path


@pytest.mark.parametrize("module", ["trainer", "model", "run/loop", "run/journal"])
def test_the_step_names_no_option(module: str) -> None:
    """No option in its code: no variable, attribute, argument or string of that name."""
    words_of_all = {*ABSENT, "enabled", "ema", "random", "weights", "run", "folder"}  # of torch, of every run
    options = {option for _, option in OPTIONS} - words_of_all
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    words: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "value"):
            text = getattr(node, field, None)
            if isinstance(text, str) and text not in docstrings:
                words |= set(re.findall(r"\w+", text))
    assert not words & options


# --- configs/ and the package -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=str)
def test_an_option_is_a_yaml_and_a_module_of_the_same_path(group: str, option: str) -> None:
    written = yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text()) or {}
    if option in ABSENT:
        assert "_target_" not in written
        assert not (PACKAGE / group / f"{option}.py").exists()
        return
    assert written["_target_"].rpartition(".")[0] == f"dinoswap.{group}.{module_of(group, option)}"
    option_class(written, group)


def module_of(group: str, option: str) -> str:
    match = NUMBERED.fullmatch(option)
    return match[1] if match and (group, match[1]) in OPTIONS else option


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if module_of(*o) == o[1] not in ABSENT], ids=str)
def test_an_option_lists_every_argument(group: str, option: str) -> None:
    written = yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text().replace(MISSING, "''"))
    written = {name: value for name, value in written.items() if name not in NOT_ARGUMENTS}
    target, given = option_class(written, group), GIVEN.get(group, set())
    values = checked(target, written, group, given)
    assert set(values) == set(inspect.signature(target).parameters) - given


@pytest.mark.parametrize("group", GROUPS)
def test_a_module_of_a_group_is_an_option_or_helps_one(group: str) -> None:
    used = {name for path in MODULES for name in imported(path)}
    for path in (PACKAGE / group).glob("[!_]*.py"):
        module = f"dinoswap.{group}.{path.stem}"
        importlib.import_module(module)
        assert (group, path.stem) in OPTIONS or any(f"{name}.".startswith(f"{module}.") for name in used), module
