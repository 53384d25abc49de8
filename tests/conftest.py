import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/fixtures.py, from every folder of tests

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # before torch reads it: no processes that outlive a test

from compositions import remember_compositions

remember_compositions()

# A command that a shell started in the background ignores SIGINT, under nohup SIGHUP too, and so does all that it
# starts: but tests send them
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPU, so that all machines compute the same, but from `pytest -m gpu`, the tests that are about it."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


LONGEST = (
    "test_slurm", "test_readme", "test_survival", "test_rank_failures", "test_equivalence", "test_axes", "test_plan",
    "test_tune", "test_evaluation", "test_launch", "test_check_parity", "test_file_errors", "test_guests",
    "test_export", "test_compiled", "test_command_line",
)  # fmt: skip
"""Files that take a minute each, the longest first: handed out at the end, one of them would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
