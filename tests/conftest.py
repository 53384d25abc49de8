import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/fixtures.py, from every folder of tests


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (pytest -n 2 --dist loadgroup) a file is run by one of them, and so is all that uses the
    one SLURM cluster."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("slurm" if "slurm" in item.path.name else str(item.path)))
