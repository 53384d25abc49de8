"""Weights & Biases. Its files are in the run's folder, and hold everything: what could not be uploaded while training,
`wandb sync` uploads later.

wandb works in a process of its own, wandb-core, which outlives a training that leaves before all is uploaded. So this
module ends it, wherever the connection is too slow or lost. "Stop run" on the page of a run acts like Ctrl-C: the state
is saved.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dinoswap.tracker.base import CLOSE_SECONDS, Status, TrackedRun, Tracker

if TYPE_CHECKING:
    import wandb

STEP = "step"
"""The axis of all curves. It is logged like a metric, as wandb's own count of steps cannot repeat any."""
INIT_SECONDS = 30.0
"""How long a server is waited for when the run begins; training goes on meanwhile."""
UPLOAD_SECONDS = CLOSE_SECONDS - 3
"""How long the last values may take. The rest of CLOSE_SECONDS is for wandb-core to end."""
CONFIG = "resolved_config.yaml"
"""The file of the config; wandb writes a config.yaml of its own."""

_log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """Tracks a run as one of `project`, in the group of its study. `mode` is wandb's; null leaves it to WANDB_MODE.
    Without `code` neither code nor the state of git is stored."""

    package = "wandb"
    install = "pip install 'dinoswap[wandb]'"

    def __init__(
        self, *, project: str, entity: str | None, mode: Literal["online", "offline"] | None, code: bool
    ) -> None:
        self.project, self.entity, self.mode, self.code = project, entity, mode, code
        self._service: Any = None
        self._files: Path | None = None

    def load(self) -> None:
        # Its reports on itself hold the end of a process until a lost connection is given up
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        super().load()

    def start(self, run: TrackedRun, first_step: int) -> None:
        import wandb

        try:
            self._run = self._begun(run, self.mode)
        except wandb.errors.CommError as error:
            reason = " ".join(str(error).split())
            _log.warning("tracker wandb: no connection, so it writes to %s alone (%s)", run.folder / "wandb", reason)
            self.abandon()  # it would go on trying
            self._run = self._begun(run, "offline")
        self._files = Path(self._run.settings.sync_dir)
        self._run.define_metric("*", step_metric=STEP)
        self._repeated = range(first_step, int(dict(self._run.summary).get(STEP) or 0) + 1)
        config = Path(self._run.dir, CONFIG)
        config.write_text(run.config)
        self._run.save(config, base_path=config.parent, policy="now")

    def _begun(self, run: TrackedRun, mode: Literal["online", "offline"] | None) -> "wandb.Run":
        """Returns the run of wandb, continued where there is one. Raises CommError where the server is not reached."""
        import wandb

        # Without output it asks nobody for a key, which would hold the terminal
        self._service = wandb.setup(settings=wandb.Settings(silent=True)).ensure_service()
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=not self.code,
            disable_code=not self.code,
            init_timeout=INIT_SECONDS,
            finish_timeout=UPLOAD_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            id=run.key,
            resume=None if mode == "offline" else "allow",
            name=run.name,
            group=run.study,
            dir=run.folder,
            config=dict(run.hparams),
            allow_val_change=True,
            reinit="create_new",
            settings=settings,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step not in self._repeated:
            self._run.log({STEP: step, **values})

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        import wandb

        if step not in self._repeated:
            self._run.log({STEP: step, name: wandb.Image(image)})

    def close(self, status: Status) -> None:
        import wandb

        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "completed" else 1)
        wandb.teardown()

    def abandon(self) -> None:
        import wandb

        if self._service is not None and self._service.owns_service:
            process = self._service._proc._process  # nothing public ends it before all is uploaded
            process.kill()
            process.wait()
            with contextlib.suppress(Exception):
                wandb.teardown()  # else the end of this process would wait for it

    def remedy(self) -> str:
        written = f"`wandb sync {self._files}` uploads what it was given; " if self._files else ""
        return f"{written}{super().remedy()}"
