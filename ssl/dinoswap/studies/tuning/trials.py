"""The trials of a search, as Optuna keeps them: in one journal file that all workers append to, or in a data base.

Whoever asks for a trial holds the lock of the folder `ask`, so that the number of trials is exact and none
is handed out twice. First of all it takes back the trials of workers that are dead: closed as failed, and enqueued
again with the user attributes `retry_of` (the number of the closed one) and `deaths`. A retry has the values of the
trial that it replaces, and so its run folder, where the run goes on from its last checkpoint.
"""

import inspect
import json
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dinoswap.config.schema import ConfigError, nearest
from dinoswap.files.lock import exclusive, holder
from dinoswap.studies.tuning.definition import PRUNERS, Tuning, as_begun
from dinoswap.studies.tuning.journal import open_journal
from dinoswap.studies.tuning.space import Parameter

RETRIES = 1
"""How often a trial is run again whose worker or run was killed. Preemptions do not count."""
FAILURES_IN_A_ROW = 3
"""Failures after which the search stops, as something is wrong with more than one trial."""
DEFINITION = "dinoswap"
"""The user attribute of an Optuna study that holds what is searched."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Stopped(Exception):
    """Raised when trials fail one after the other; the message has the error of the last one."""


def open_study(tuning: Tuning, url: str | None = None) -> optuna.Study:
    """Returns the Optuna study of a search, begun or continued. `url` is that of a data base in place of the journal.
    Raises ConfigError when the search was begun with another definition, or its storage cannot be opened."""
    study = optuna.create_study(
        study_name=tuning.name,
        storage=storage(tuning.folder) if url is None else data_base(url),
        pruner=pruner(tuning),
        directions=[objective.direction for objective in tuning.objectives],
        load_if_exists=True,
    )
    now, before = tuning.definition(), study.user_attrs.get(DEFINITION)
    if before is None:
        study.set_metric_names([objective.name for objective in tuning.objectives])
        study.set_user_attr(DEFINITION, now)
    elif (before := as_begun(before, now)) != now:
        raise ConfigError(
            f"{tuning.path}: is not what {tuning.folder} was begun with: {changes(before, now)}; undo this, "
            f"or copy the file under another name"
        )
    return study


def storage(folder: Path) -> BaseStorage:
    """Returns the storage in the search's journal. Raises ConfigError for a file that is no journal."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "journal.log"
    try:
        return JournalStorage(open_journal(path))
    except Exception as error:  # Optuna replays what the lines say, and raises what it likes
        raise ConfigError(
            f"{path}: is not the journal of a search ({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
            "move it away, and the search begins anew: runs that have a result are not run again"
        ) from error


def data_base(url: str) -> BaseStorage:
    """Returns the storage in a data base. Raises ConfigError when there is none at `url`, or no driver for it."""
    try:
        return optuna.storages.RDBStorage(url)
    except ImportError as error:
        raise ConfigError(
            f"--storage: {url.partition(':')[0]} has no driver here ({error.__cause__ or error}); for PostgreSQL "
            "pip install 'dinoswap[postgresql]' and begin the URL with postgresql+psycopg://"
        ) from error
    except Exception as error:  # of SQLAlchemy, of the driver, or of Optuna for a data base of another version
        raise ConfigError(f"--storage: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


def pruner(tuning: Tuning) -> BasePruner:
    """Returns the pruner of a search. Raises ConfigError for arguments that Optuna does not know or refuses."""
    arguments = {name: value for name, value in tuning.pruner.items() if name != "type"}
    chosen = getattr(optuna.pruners, PRUNERS[tuning.pruner["type"]])
    known = [name for name in inspect.signature(chosen).parameters if name not in ("args", "kwargs")]
    for name, value in arguments.items():
        if name not in known:
            raise ConfigError(
                f"{tuning.path}: pruner.{name}={value}: there is no such key.{nearest(name, known)} "
                f"Known: {', '.join(['type', *known])}."
            )
    try:
        return chosen(**arguments)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{tuning.path}: pruner={tuning.pruner}: {error}") from error


def distributions(tuning: Tuning) -> dict[str, BaseDistribution]:
    """Returns Optuna's distribution of each parameter, by its key."""
    return {key: distribution(parameter) for key, parameter in tuning.parameters.items()}


def distribution(parameter: Parameter) -> BaseDistribution:
    """Returns Optuna's distribution of a parameter."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.type == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), parameter.log, int(parameter.step or 1))
    return FloatDistribution(parameter.low, parameter.high, parameter.log, parameter.step)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns, in words, the first entries in which two definitions differ."""
    different = [
        f"{part}.{key}: {before[part].get(key)} -> {now[part].get(key)}"
        for part in now
        for key in {**before[part], **now[part]}
        if before[part].get(key) != now[part].get(key)
    ]
    return "; ".join(different[:3]) + (f"; and {len(different) - 3} more" if len(different) > 3 else "")


# --- asking -----------------------------------------------------------------------------------------------------------


def next_trial(study: optuna.Study, tuning: Tuning, worker: str, before: Collection[int]) -> optuna.Trial | None:
    """Returns a trial for the worker of this name, or None when all have been handed out. Raises Stopped when trials
    other than those numbered in `before` fail in a row."""
    with exclusive(tuning.folder / "ask", patience=math.inf):
        take_back(study, tuning.folder)
        trials = study.get_trials(deepcopy=False)
        stop_when_failing(trials, before)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and len(current(trials)) >= tuning.trials:
            return None
        study.sampler = sampler(len(trials))
        trial = study.ask(distributions(tuning))
        trial.set_user_attr("worker", worker)
        return trial


def sampler(trials: int) -> optuna.samplers.BaseSampler:
    """Returns a sampler that is seeded by the number of trials so far: what is drawn follows from them, whoever asks.
    With a seed of its own, a worker that is started again would draw once more what it drew before."""
    return optuna.samplers.TPESampler(seed=trials, multivariate=True, constant_liar=True)


def current(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that no retry has replaced."""
    replaced = {trial.user_attrs.get("retry_of") for trial in trials}
    return [trial for trial in trials if trial.number not in replaced]


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that are closed for good: finished, and replaced by no retry."""
    return [trial for trial in current(trials) if trial.state.is_finished()]


def ended_numbers(study: optuna.Study) -> frozenset[int]:
    """Returns the numbers of all trials that have ended."""
    return frozenset(trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())


def stop_when_failing(trials: list[FrozenTrial], before: Collection[int]) -> None:
    """Raises Stopped when the last FAILURES_IN_A_ROW of the trials other than those numbered in `before` failed. Their
    numbers say which are later, not their times, which are those of each worker's own clock."""
    ended = [trial for trial in finished(trials) if trial.number not in before]
    last = sorted(ended, key=lambda trial: trial.number)[-FAILURES_IN_A_ROW:]
    if len(last) == FAILURES_IN_A_ROW and all(trial.state == TrialState.FAIL for trial in last):
        raise Stopped(f"{FAILURES_IN_A_ROW} trials in a row failed, the last of them: {error_of(last[-1])}")


def error_of(trial: FrozenTrial) -> str:
    """Returns the error of a trial that failed."""
    return str(trial.user_attrs.get("error") or "its worker was killed, again")


# --- closing ----------------------------------------------------------------------------------------------------------


def take_back(study: optuna.Study, folder: Path) -> None:
    """Gives back the running trials of workers that are dead. Only one process may do so at a time."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        worker = trial.user_attrs.get("worker")  # none: killed between asking and saying who it is
        if worker is None or holder(worker_folder(folder, worker)) is None:
            give_back(study, trial.number, died=True)


def worker_folder(folder: Path, worker: str) -> Path:
    """Returns the folder that a worker keeps locked while it lives."""
    return folder / "workers" / worker


def give_back(study: optuna.Study, number: int, *, died: bool) -> None:
    """Closes a trial that has no outcome, and enqueues it again unless it has died too often."""
    trials = study.get_trials(deepcopy=False)
    deaths = trials[number].user_attrs.get("deaths", 0) + died
    replaced = any(trial.user_attrs.get("retry_of") == number for trial in trials)  # killed between these two calls
    if deaths <= RETRIES and not replaced:
        study.enqueue_trial(trials[number].params, user_attrs={"retry_of": number, "deaths": deaths})
    study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def retry_failed(study: optuna.Study) -> None:
    """Enqueues the failed trials again."""
    for trial in finished(study.get_trials(deepcopy=False)):
        if trial.state == TrialState.FAIL:
            study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})


# --- what came out ----------------------------------------------------------------------------------------------------


def winners(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Returns up to `count` of the best trials, best first, each setting once; with several objectives those of the
    Pareto front, ordered by the first one."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    front = complete if len(study.directions) == 1 else study.best_trials
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    by_setting: dict[str, FrozenTrial] = {}
    for trial in sorted(front, key=lambda trial: (sign * trial.values[0], trial.number)):
        by_setting.setdefault(json.dumps(trial.params, sort_keys=True), trial)
    return list(by_setting.values())[:count]


def done(study: optuna.Study, tuning: Tuning) -> bool:
    """Returns whether all trials have ended, at least one of them with a result."""
    trials = study.get_trials(deepcopy=False)
    return len(finished(trials)) >= tuning.trials and any(trial.state == TrialState.COMPLETE for trial in trials)


def mostly_failed(study: optuna.Study) -> str:
    """Returns a message when at least half of the trials failed, as then hardly any of the space was searched;
    otherwise an empty text."""
    ended = finished(study.get_trials(deepcopy=False))
    failed = [trial for trial in ended if trial.state == TrialState.FAIL]
    if not failed or 2 * len(failed) < len(ended):
        return ""
    return f"{len(failed)} of {len(ended)} trials failed, the last of them: {error_of(failed[-1])}"
