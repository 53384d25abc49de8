"""What a job does with a run that needs no training. Whole jobs: tests/test_survival.py."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinoswap.run import job


def test_what_was_completed_while_its_lock_was_waited_for_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def freed_by_another(folder: Path) -> Iterator[None]:
        (folder / "run.json").write_text(json.dumps({"run_id": "", "status": "completed", "metrics": {"eval/a": 50.0}}))
        yield

    named: Any = SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr(job, "exclusive", freed_by_another)
    monkeypatch.setattr(job, "train", lambda *_: pytest.fail("it is trained again"))
    assert job.hold_and_train({"objective_metric": "eval/a"}, named) == 50.0
