"""Run folders as pandas frames: one row per run, and the long frame of their curves.

`load_runs(root)`, sorted by study, run_id and seed:

| column | what |
|---|---|
| run_id, study, seed, status | as in run.json |
| choice.<group> | the option of each config group: choice.masking, choice.reduction@objectives.ibot.reduction |
| config.<key> | numbers of config.yaml that differ between these runs; NaN where a run has no such key |
| metric.<name> | the last value of each metric: metric.eval/knn_top1; NaN where it is missing or not finite |
| images_per_second, cost.<name> | throughput; cost.flops_per_image, cost.core_or_gpu_hours, cost.peak_memory_bytes |
| steps, restarts, started, ended, error | how the run went: times in UTC, and the message of a run that ended badly |
| commit, dirty, hardware, overrides | what repeats it; the overrides in one line, as a shell takes them |
| path | the run's folder |

A run is a row once: of folders whose records have the same study, run_id, seed and beginning (a copied folder) the one
in its own place, <study>/<run_id>/seed<k>, stands for all; then the one that got further.

`load_curves(root)`: run_id, seed, step, name, value; a line of metrics.jsonl gives a row per name.

The rows are kept in a Parquet file at the root. A row is used again while path, time and size of its run.json are the
same; a file that is damaged or of another format is written anew, and where that cannot be written there is none.
"""

import logging
import time
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dinoswap.files.writing import write_atomically
from dinoswap.run.find_runs import SETTLED_NS, PassedOver, Stamp, find_run_folders
from dinoswap.run.points import read_points
from dinoswap.studies.run_folders import RunReader

CACHE = ".runs.parquet"
FORMAT_KEY, FORMAT = b"dinoswap.runs", b"3"
"""The version of the cached rows: counts up when they change."""

FIRST = ["run_id", "study", "seed", "status"]
LAST = ["steps", "restarts", "started", "ended", "error", "commit", "dirty", "hardware", "overrides", "path"]
STAMP = ["mtime_ns", "size"]
BLANK = "blank"
"""A column of cached rows: the names, a line each, of the row's columns without a value, which in a frame look like the
columns that it lacks."""
BY_NAME = ("choice.", "config.", "metric.", "cost.")
NUMBERS = ("config.", "metric.", "cost.", "images_per_second")
TYPES = {
    "seed": "int64",
    "mtime_ns": "int64",
    "size": "int64",
    "steps": "Int64",
    "restarts": "Int64",
    "dirty": "boolean",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    frame: pd.DataFrame
    passed_over: list[PassedOver]


def load_runs(root: str | Path, cache: bool = True) -> pd.DataFrame:
    """Returns one row for each run below `root`, which may be results, results/runs, a study's folder or a run's. The
    columns are those of this module's docstring. Raises FileNotFoundError where there is no such folder."""
    return read_runs(root, cache).frame


def load_curves(root: str | Path, names: Collection[str] | None = None) -> pd.DataFrame:
    """Returns what the runs below `root` logged, of these names only if any are given. The columns are run_id, seed,
    step, name and value; a run that is in several studies is in it once. Raises FileNotFoundError where there is no
    such folder."""
    return read_curves(load_runs(root), names).frame


def read_runs(root: str | Path, cache: bool = True) -> Loaded:
    """Returns the frame of `load_runs`, and what was passed over. Raises FileNotFoundError as it does."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder; runs are written to results/runs")
    now = time.time_ns()
    stamps, passed_over = find_run_folders(root)
    cached = _read_cache(root / CACHE) if cache else None
    known = _frame([]) if cached is None else cached[_is_current(cached, stamps)]
    reader, unread = RunReader(), stamps.keys() - set(known["path"])
    rows = []
    for path in sorted(unread):
        row = reader.read(root / path)
        if row is not None:
            blank = "\n".join(name for name, value in row.items() if pd.isna(value))
            rows.append(row | {"path": path, BLANK: blank} | dict(zip(STAMP, stamps[path], strict=True)))
    frame = pd.concat([part for part in (known, _frame(rows)) if len(part)] or [known], ignore_index=True)
    frame = frame.drop(columns=_of_no_row(frame))
    if cache and (cached is None or unread or len(known) < len(cached)):
        partly = [str(skipped.path.parent.relative_to(root)) for skipped in reader.passed_over]
        settled = frame["mtime_ns"] < now - SETTLED_NS
        _write_cache(root / CACHE, frame[settled & ~frame["path"].isin(partly)])
    frame, copies = _without_copies(frame, root)
    return Loaded(_presented(frame, root), passed_over + reader.passed_over + copies)


def read_curves(runs: pd.DataFrame, names: Collection[str] | None = None) -> Loaded:
    """Returns the frame of `load_curves` for rows of `load_runs`, and what was passed over."""
    runs = runs.sort_values("steps", na_position="first").drop_duplicates(["run_id", "seed"], keep="last").sort_index()
    selected = None if names is None else set(names)
    codes: dict[str, int] = {}
    steps, values, kinds, lengths = array("q"), array("d"), array("q"), []
    passed_over = []
    for path in runs["path"]:
        before = len(steps)
        try:
            for step, name, value in read_points(Path(path) / "metrics.jsonl", selected):
                steps.append(step)
                values.append(value)
                kinds.append(codes.setdefault(name, len(codes)))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            passed_over.append(PassedOver(Path(path) / "metrics.jsonl", str(reason)))
        lengths.append(len(steps) - before)
    frame = pd.DataFrame(
        {
            "run_id": np.repeat(runs["run_id"].to_numpy(dtype=object), lengths),
            "seed": np.repeat(runs["seed"].to_numpy(), lengths),
            "step": np.array(steps, dtype=np.int64),
            "name": np.array(list(codes), dtype=object)[np.array(kinds, dtype=np.int64)],
            "value": np.array(values, dtype=np.float64),
        }
    )
    return Loaded(frame.astype({"run_id": "string", "name": "string"}), passed_over)


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns rows as the frame that is cached, in which every column has its type, whatever the rows lack."""
    frame = pd.DataFrame(list(rows))
    columns = dict.fromkeys([*FIRST, *frame.columns, "images_per_second", *LAST, *STAMP, BLANK])
    types = {column: "float64" if column.startswith(NUMBERS) else "string" for column in columns}
    return frame.reindex(columns=list(columns)).astype(types | TYPES)


def _without_copies(frame: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[PassedOver]]:
    """Returns the frame with each run once, and the folders that are left out."""
    absolute = [(root / path).absolute().parts[-3:] for path in frame["path"]]
    expected = [(study, run_id, f"seed{seed}") for study, run_id, seed in frame[["study", "run_id", "seed"]].to_numpy()]
    elsewhere = [place != folder for place, folder in zip(absolute, expected, strict=True)]
    same = ["study", "run_id", "seed", "started"]
    order = frame[[*same, "path"]].assign(elsewhere=elsewhere, left=-frame["steps"].fillna(0))
    order = order.sort_values(["elsewhere", "left", "path"])
    first = order.groupby(same, dropna=False)["path"].transform("first")
    first = first.reindex(frame.index)
    copies = first != frame["path"]
    pairs = zip(frame["path"][copies], first[copies], strict=True)
    return frame[~copies], [PassedOver(root / path, f"is a copy of {root / kept}") for path, kept in pairs]


def _of_no_row(frame: pd.DataFrame) -> list[str]:
    """Returns the columns that no row has any more, as their runs have changed or gone since they were cached."""
    blank = {name for names in frame[BLANK] for name in names.split("\n")}
    return [name for name in frame if name.startswith(BY_NAME) and name not in blank and frame[name].isna().all()]


def _presented(frame: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Returns the frame with the documented columns in their order."""
    names = sorted(frame.columns)
    groups = {kind: [name for name in names if name.startswith(kind)] for kind in ("choice.", "metric.", "cost.")}
    settings = [name for name in names if name.startswith("config.") and frame[name].nunique(dropna=False) > 1]
    columns = [*FIRST, *groups["choice."], *settings, *groups["metric."], "images_per_second", *groups["cost."], *LAST]
    frame = frame[columns].sort_values(["study", "run_id", "seed", "path"], ignore_index=True)
    for name in ("started", "ended"):
        frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601", errors="coerce")
    return frame.assign(path=[str(root / path) for path in frame["path"]])


# --- cache ------------------------------------------------------------------------------------------------------------


def _is_current(cached: pd.DataFrame, stamps: Mapping[str, Stamp]) -> npt.NDArray[np.bool_]:
    """Returns which rows of the cache have the stamp of their run's file as it is now, bool [rows]."""
    rows = zip(cached["path"], cached["mtime_ns"], cached["size"], strict=True)
    return np.array([stamps.get(path) == (time_ns, size) for path, time_ns, size in rows], dtype=np.bool_)


def _read_cache(path: Path) -> pd.DataFrame | None:
    """Returns the cached rows, or None unless the file is whole, which its checksums tell, and of this format."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        if (table.schema.metadata or {}).get(FORMAT_KEY) != FORMAT:
            return None
        return table.to_pandas()
    except (OSError, pa.ArrowException):
        return None


def _write_cache(path: Path, frame: pd.DataFrame) -> None:
    """Writes the frame as a Parquet file with checksums. A disk that refuses it is logged, and costs only time."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**table.schema.metadata, FORMAT_KEY: FORMAT})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    try:
        write_atomically(path, sink.getvalue().to_pybytes())
    except OSError as error:
        _log.info("%s is not written: %s", path, error)
