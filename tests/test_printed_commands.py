"""Every command line that a README.md and the comments of configs/ print, typed into a shell: what the programs then
get is accepted, as far as arguments are read and configs composed. The programs are stubs.
"""

import importlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dinoswap import export
from dinoswap.config.command_line import check_arguments, compose_config
from dinoswap.config.configuration import config_dir
from dinoswap.evaluate import with_overrides
from dinoswap.run.subject import default_config
from dinoswap.studies import ablate
from dinoswap.studies.overrides import is_hydra_override
from dinoswap.studies.study import read_study
from dinoswap.studies.tuning.definition import read_tuning

ROOT = Path(__file__).parents[1]
GUIDES = [
    "configs",
    "ablations",
    "tools",
    "tests",
    *(f"ssl/dinoswap/{room}" for room in ("data", "distributed", "run")),
]
PAGES = [ROOT / folder / "README.md" for folder in (".", *GUIDES)]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
LAUNCHERS = ("torchrun", "srun", "python")
PROGRAMS = [*SCRIPTS, *LAUNCHERS, "make"]
SHELLS = ["bash", "zsh" if shutil.which("zsh") else "sh"]
PLACEHOLDER = re.compile(r"<\w+>| \.\.\.$")  # which a reader replaces, or reads as "and so on"
GLOB = re.compile(r"[*?\[]")
"""zsh refuses to run a line with one of these outside quotes that matches no file."""


def printed() -> Iterator[str]:
    for page in PAGES:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for block in (text for language, text in blocks if not language):
            yield from (line for line in block.replace("\\\n", "").splitlines() if line.split()[:1] != ["#"])
    for file in config_dir().rglob("*.yaml"):
        yield from re.findall(r"^# +((?:dinoswap-|python |torchrun ).*)$", file.read_text(), re.MULTILINE)


LINES = [line for line in dict.fromkeys(PLACEHOLDER.sub("", line) for line in printed()) if line.strip()]
COMMANDS = [line for line in LINES if line.split()[0] in PROGRAMS]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """Shell -> what the program of each line of COMMANDS was started with. Nothing but stubs can be started."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in PROGRAMS:
        stub = folder / name
        stub.write_text(f"#!/bin/sh\nprintf '%s\\0' {name} \"$@\"\n")
        stub.chmod(0o755)
    return {shell: [started(shell, line, folder) for line in COMMANDS] for shell in SHELLS}


def started(shell: str, line: str, stubs: Path) -> list[str]:
    path = shutil.which(shell)
    assert path is not None
    done = subprocess.run(
        [path, "-c", line], env={"PATH": str(stubs)}, cwd=stubs, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), line
    return done.stdout.split("\0")[:-1]


def test_every_line_of_a_block_is_understood() -> None:
    """What else stands in a block is data, or Python."""
    assert len(COMMANDS) >= 30
    assert not [line for line in LINES if line not in COMMANDS and re.match(r"[\w./-]+ +\S*=|\S*dinoswap", line)]


def test_shells_agree(typed: dict[str, list[list[str]]]) -> None:
    first, second = typed.values()
    assert first == second
    for line in COMMANDS:
        outside = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition(" #")[0])
        assert not GLOB.search(outside), line


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What /site holds in README.md: the launcher that it prints."""
    launcher = tmp_path / "hydra/launcher/site.yaml"
    launcher.parent.mkdir(parents=True)
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    launcher.write_text(text)
    return tmp_path


def test_every_command_is_accepted(
    typed: dict[str, list[list[str]]], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for program, *arguments in typed[SHELLS[0]]:
        accept(program, [argument.replace("file:///site", f"file://{site}") for argument in arguments])


def accept(program: str, arguments: list[str]) -> None:
    """Raises ConfigError, or SystemExit, for what the program would refuse."""
    if program == "make":
        assert all(re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for goal in arguments)
    elif program in LAUNCHERS and "dinoswap.train" in arguments:
        check_arguments(arguments[arguments.index("dinoswap.train") + 1 :])
    elif program == "python":
        accept_tool(*arguments)
    elif program == "dinoswap-export":
        export.parser().parse_args(arguments)
    elif program == "dinoswap-train":
        check_arguments([argument for argument in arguments if argument != "--explain"])
    elif program == "dinoswap-ablate":
        accept_overrides(program, vars(ablate.parse(arguments)[1]))
    else:
        module = importlib.import_module(SCRIPTS[program].partition(":")[0])
        accept_overrides(program, vars(module.parser().parse_intermixed_args(arguments)))


def accept_overrides(program: str, given: dict[str, object]) -> None:
    overrides = given.get("overrides") or []
    assert isinstance(overrides, list)
    if program == "dinoswap-ablate":
        study = read_study(str(given["study"]), [line for line in overrides if not is_hydra_override(line)])
        launcher = [] if any("hydra/launcher" in line for line in overrides) else ["hydra/launcher=local"]
        compose_config(
            study.overrides(study.reference) + launcher + [line for line in overrides if is_hydra_override(line)]
        )
    elif program == "dinoswap-tune":
        read_tuning(str(given["study"]), overrides)
    elif program in ("dinoswap-eval", "dinoswap-embed"):
        with_overrides(default_config(), overrides)


def accept_tool(tool: str, *arguments: str) -> None:
    """The options of a tool are found in it."""
    text = (ROOT / tool).read_text()
    assert all(argument in text for argument in arguments if argument.startswith("-"))
    if tool.endswith("plan.py"):
        compose_config(settings(arguments))


def settings(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if "=" in argument and not argument.startswith("-")]


def test_the_shards_of_the_readme_are_a_hundred(typed: dict[str, list[list[str]]]) -> None:
    from braceexpand import braceexpand

    (arguments,) = [words for words in typed[SHELLS[0]] if "data=webdataset" in words]
    config = compose_config(arguments[1:])
    assert len(list(braceexpand(config["data"]["path"]))) == 100
    assert os.fspath(config["data"]["path"]) == "/data/shard-{000..099}.tar"
