"""A run as trackers are told of it, and the readers of what they have written."""

import json
import struct
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from dinoswap.tracker.base import TrackedRun

HPARAMS = {
    "masking": "bernoulli",
    "targets@objectives.dino.targets": "sinkhorn",
    "optimizer.betas": [0.9, 0.99],
    "seed": 3,
}
BLOCK, HEADER = 2**15, struct.Struct("<IHB")  # of a log of LevelDB: checksum, length, type


def tracked_run(folder: Path) -> TrackedRun:
    return TrackedRun(
        name="official masking=bernoulli seed 3",
        key="single-1a2b3c-seed3-20260101T000000",
        run_id="1a2b3c",
        study="single",
        seed=3,
        folder=folder,
        results=folder,
        config="seed: 3\nmodel:\n  size: small\n",
        hparams=HPARAMS,
        objective="eval/knn_top1",
    )


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()


def wandb_files(folder: Path) -> list[Path]:
    """One for each process of the run, in their order."""
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


def wandb_records(path: Path) -> list[Record]:
    """What a run's .wandb file holds: a header of 7 bytes, then pieces of records in blocks of 32 KiB."""
    content, place, pieces, records = path.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while place + HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:
            place += left
            continue
        _, length, kind = HEADER.unpack_from(content, place)
        place += HEADER.size + length
        pieces += content[place - length : place]
        if kind in (1, 4):  # whole, last
            records.append(Record.FromString(pieces))
            pieces = b""
    return records


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """Its logged numbers, as metrics.jsonl has them."""
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows
