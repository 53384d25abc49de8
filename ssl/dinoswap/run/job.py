"""Runs one training as a job of Hydra: makes its folder and record, handles how it ends, sets the exit status."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from dinoswap.build import build_parallel
from dinoswap.config.configuration import config_dir, flatten, plain
from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_RESUMABLE, EXIT_USAGE
from dinoswap.config.identity import run_id
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import with_its_backbone
from dinoswap.config.settings import check
from dinoswap.config.tracked import require_packages
from dinoswap.data.corrupt import TooManyCorrupt
from dinoswap.data.workers import DataWorkerError
from dinoswap.distributed import RankFailed, is_main, on_main, require_same, together, world_size
from dinoswap.distributed.environment import expand_segments
from dinoswap.distributed.group import explained, one_line, process_group
from dinoswap.evaluation.evaluator import Evaluation
from dinoswap.files.lock import Held, exclusive
from dinoswap.files.writing import write_atomically
from dinoswap.optim.nonfinite import Diverged
from dinoswap.optim.param_groups import group_table
from dinoswap.run.assemble import build_run
from dinoswap.run.checkpoint import CheckpointError
from dinoswap.run.earlier_runs import to_train_longer
from dinoswap.run.flops import step_flops
from dinoswap.run.index import renew_above
from dinoswap.run.loop import Preempted, Run
from dinoswap.run.metrics import RunRecord, load_record
from dinoswap.run.naming import Named, launched_place, name_run
from dinoswap.run.notices import notices
from dinoswap.run.progress import logging_to
from dinoswap.run.provenance import SUBMITTED_CODE, CodeChanged, require_submitted_code
from dinoswap.tracker.base import Status

EXPECTED = (
    *(KeyboardInterrupt, Preempted, CodeChanged, Diverged, TooManyCorrupt, DataWorkerError, CheckpointError),
    *(RankFailed, OSError, ValueError),
)
EXIT_CODES = {ConfigError: EXIT_USAGE, **dict.fromkeys((Preempted, KeyboardInterrupt, Held), EXIT_RESUMABLE)}

_log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float | None:
    """Trains, or continues, the run that `cfg` describes and returns its objective metric. Every rank calls it; the
    first one holds the lock on the folder. Raises ConfigError for a wrong config, and what `hold_and_train` raises."""
    expand_segments()
    with contextlib.ExitStack() as group:
        with failure_recorded(lambda: launched_place(cfg), lambda: plain(cfg, strict=False)):
            config = plain(cfg)
            if parallel := build_parallel(config):
                group.enter_context(process_group(parallel.timeout_minutes))
            require_same_command(config)
            config = together(lambda: dict(with_its_backbone(config)))
            together(lambda: check(config))
            together(lambda: require_packages(config))
            named = name_run(config)
        try:
            return hold_and_train(config, named)
        except ConfigError:
            if is_main():
                remove_empty(named.folder)
            raise


def hold_and_train(config: Mapping[str, Any], named: Named) -> float | None:
    """Trains the run `named` under an exclusive lock on its folder, unless it is complete, and returns its objective
    metric. Raises Held where another process has the lock."""
    record_path = named.folder / "run.json"
    with contextlib.ExitStack() as held:
        if not on_main(lambda: is_complete(record_path)):
            on_main(lambda: held.enter_context(exclusive(named.folder)))
            if not on_main(lambda: is_complete(record_path)):  # another process may have completed it meanwhile
                return train(config, named)
        if is_main():
            print(f"{named.folder} is complete: nothing is left to do; {to_train_longer(named.folder)}")
    return objective(load_record(record_path)["metrics"], config["objective_metric"])


def require_same_command(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless all ranks were given the same config, apart from paths, which may differ between nodes
    (contents are compared once the files are open), and the device."""
    shared = {
        key: value for key, value in flatten(config).items() if key != "trainer.device" and not key.endswith("path")
    }
    require_same(shared, "give all the same command")


def is_complete(record_path: Path) -> bool:
    """Tells whether run.json says that the run is completed."""
    return record_path.exists() and load_record(record_path)["status"] == "completed"


def train(config: Mapping[str, Any], named: Named) -> float | None:
    """Builds and trains the run, prints its results, and returns its objective metric. The caller holds the lock on the
    run's folder."""
    folder = named.folder
    built = build(config, named)
    get_console().quiet = not is_main()
    get_console().print(group_table(built.trainer.optimizer.param_groups))
    with logging_to(folder / "log.txt"):
        if named.near_duplicate and is_main():
            _log.info("this run %s", named.near_duplicate)
        for sentence in before_the_first_step(built, config):
            _log.warning(sentence)
        evaluation = finish(built)
    if evaluation.results:
        get_console().print(evaluation.table())
    get_console().print(f"run folder: {folder}", soft_wrap=True)
    return objective(built.record.metrics, config["objective_metric"])


def build(config: Mapping[str, Any], named: Named) -> Run:
    """Returns the run, built by `build_run`. Raises CodeChanged where the code has changed since the job was
    submitted."""
    folder, identity, data = named.folder, named.identity, asdict(named.data)
    with failure_recorded(lambda: folder, lambda: config, identity, data):
        together(lambda: require_submitted_code(config_dir()))
        record = partial(start_record, folder, config, identity, data)
        return build_run(config, folder, record, identity, named.source)


@contextlib.contextmanager
def failure_recorded(
    folder: Callable[[], Path],
    config: Callable[[], Mapping[str, Any]],
    identity: Mapping[str, Any] = MappingProxyType({}),
    data: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """Writes an exception that is raised within the context, in a launched job, into run.json in `folder()` before it
    is raised again: nobody watches the output of such a job."""
    try:
        yield
    except Exception as error:
        if SUBMITTED_CODE in os.environ:
            with contextlib.suppress(OSError, ValueError):  # a disk that refuses the record must not hide the error
                run_folder = folder()
                run_folder.mkdir(parents=True, exist_ok=True)
                record = start_record(run_folder, config(), identity, data)
                record.finish("failed", f"{type(error).__name__}: {error}")
                if is_main():
                    renew_above(record)
        raise


def before_the_first_step(built: Run, config: Mapping[str, Any]) -> Iterator[str]:
    """Yields the warnings that a user should read before the run starts."""
    data, plan = built.evaluator, built.trainer.model.plan
    return notices(config, train=data.train, test=data.test, masked_crops=plan.masked_crops, ranks=world_size())


def finish(built: Run) -> Evaluation:
    """Trains to the end and returns the final evaluation. However the run ends, run.json gets its status, and the page
    of all runs is brought up to date, if the disk lets it. Raises whatever ended the run."""
    try:
        if "flops_per_image" not in built.record.cost:
            built.record.cost["flops_per_image"] = flops_per_image(built)
        return built.train()
    except (Preempted, KeyboardInterrupt, Held) as error:  # Held: another process owns the folder and its record now
        if isinstance(error, KeyboardInterrupt) and built.record.status == "running":
            end(built, "preempted", "interrupted before the state could be saved")
        raise
    except Diverged as error:
        end(built, "diverged", str(error))
        raise
    except Exception as raised:
        reason = explained(raised)
        if (
            isinstance(reason, OSError) and reason.filename is None
        ):  # an error while writing to an open file has no file name
            reason.filename = str(built.folder)
        if not is_main():
            _log.error(one_line(reason))  # the first rank's is in run.json
        if built.record.status != "preempted":  # then all is saved, and only queueing the job again failed
            end(built, "failed", f"{type(reason).__name__}: {reason}")
        if reason is not raised:
            raise reason from raised
        raise
    finally:
        built.trackers.close(built.record.status)
        built.renew_index()


def flops_per_image(built: Run) -> float:
    """Returns the FLOPs of a training step per image, counted for the published algorithm: the mean over the sizes of
    crops that steps have."""
    shapes, hyper = built.trainer.shapes, built.trainer.schedules.final()
    shares = [pipeline.share for pipeline in built.dataset.pipelines]
    return fmean([step_flops(shapes, batch, hyper) / batch.images for batch in built.probes], shares)


def end(built: Run, status: Status, reason: str) -> None:
    """Writes the final status and its reason into run.json. A disk error is only printed: it must not hide the reason,
    which the caller raises."""
    try:
        built.write_record(status, reason)
    except OSError as refused:
        print(f"dinoswap-train: {built.record.path} could not be brought up to date: {refused}", file=sys.stderr)


def start_record(
    folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any], data: Mapping[str, Any]
) -> RunRecord:
    """Writes config.yaml, overrides.txt and run.json for a configuration that has been accepted, and returns the
    record."""
    hydra_config = HydraConfig.get()
    overrides = cast(list[str], OmegaConf.to_container(hydra_config.overrides.task))  # as typed: ${...} stays
    if is_main():
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        write_atomically(folder / "overrides.txt", "".join(f"{override}\n" for override in overrides))
    choices = {
        str(key): str(value) for key, value in hydra_config.runtime.choices.items() if "/" not in str(key)
    }  # of our groups
    return RunRecord.start(
        folder / "run.json",
        run_id=run_id(identity) if identity else folder.parent.name,
        study=config["study"] or "single",
        seed=config["seed"],
        choices=choices,
        overrides=overrides,
        identity=identity,
        data=data,
    )


def objective(metrics: Mapping[str, float], name: str) -> float | None:
    """Returns the metric that a sweep maximises, None where it was not measured."""
    return metrics.get(name)


def run_job(cfg: DictConfig) -> float | None:
    """Calls `run`. For expected errors, such as a wrong config or a full disk, it prints one line and exits with the
    status in `EXIT_CODES`; in a multirun it raises them for the launcher."""
    try:
        return run(cfg)
    except EXPECTED as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the launcher records it and goes on with the other jobs; Ctrl-C ends them all
        print(f"dinoswap-train: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(EXIT_CODES.get(type(error), EXIT_FAILED))


def remove_empty(folder: Path) -> None:
    """Removes the folders <study>/<run_id>/seed<k> that Hydra made for a run that was refused, as far as they are
    empty."""
    for parent in (folder, *folder.parents[:2]):
        with contextlib.suppress(OSError):
            parent.rmdir()
