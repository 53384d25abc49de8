"""`dinoswap-embed`: writes the features of every image of a data set, with names and labels, as Parquet and npy files.

A part of the data set, train or test, becomes train-000000.parquet, train-000001.parquet and so on, of PART images
each: row, name, label, and a column of vectors for each kind of features. All patch tokens, which are large, become one
train-patch.npy [rows, N, D] instead, to be opened with mmap_mode="r"; its rows that no Parquet file has, as the image
cannot be decoded or was not reached, are zero. A Parquet file is there once all of its images are done, so that the
same command goes on after an interruption, with any number of ranks. With --query neighbours.png is drawn afterwards:
a row for each of the queries, which are image files, with the nearest images of the train part.

One process computes on all cores, or on one GPU. Those that torchrun starts, `torchrun --nproc-per-node 8 -m
dinoswap.embed ...`, share the files, in a folder that all of them see. What is in them does not depend on their number.
"""

import argparse
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoswap import __version__
from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_USAGE
from dinoswap.config.facts import DataFacts, build_source
from dinoswap.config.schema import ConfigError, construct
from dinoswap.config.sections import TrainerSettings, evaluation_settings, loading_settings
from dinoswap.data.decoding import CorruptImage, Decoding, Pixels, decode
from dinoswap.evaluate import CHANGEABLE, check_evaluation, with_overrides
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.files.reading import clean
from dinoswap.files.writing import write_atomically
from dinoswap.run.subject import Config, config_of

if TYPE_CHECKING:  # these import torch, which the help and a refused command do without
    from dinoswap.backbone import Backbone
    from dinoswap.evaluation.features import EvalImages, FrozenBackbone

PART = 4096
"""Images in a Parquet file, a power of two."""
KINDS = ("cls", "patch_mean", "patch")
VECTORS = KINDS[:2]
"""Kinds of which an image has one vector; queries are compared by the first that was asked for."""
ABOUT, PICTURE = "embedding.json", "neighbours.png"
TIMEOUT_MINUTES = 10.0
"""Until a rank that does not answer is given up; one that computes is waited for, however long."""
Rows = dict[str, list[Any]]


def describe(backbone: "Backbone", data: DataFacts, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides the features: they are continued where it is the same."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.network.state_dict().items()):
        digest.update(f"{name} {list(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    config = {name: value for name, value in backbone.config.items() if name != "source"}  # a copy is the same
    return {"weights": digest.hexdigest(), "data": data.fingerprint, "config": config, **settings}


def begin(out: Path, description: dict[str, Any]) -> None:
    """Makes the folder with its embedding.json. Raises ConfigError where it has features of something else."""
    description = json.loads(json.dumps(description))
    if (out / ABOUT).is_file():
        before = json.loads((out / ABOUT).read_text())
        if other := [name for name in description if before.get(name) != description[name]]:
            raise ConfigError(f"-o {out}: has features of other {', '.join(other)}; give another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / ABOUT, json.dumps(description, indent=2) + "\n")


def embed(
    images: "EvalImages", frozen: "FrozenBackbone", tokens: tuple[int, int], out: Path, part: str
) -> Iterator[int]:
    """Writes the features of the images that are not written yet, in PART images a file, and yields the number of
    images that are done, by all ranks. `tokens` (N, D) is the shape of an image's patch tokens. The ranks take files in
    turns, and compute batch by batch together, so that the failure of one ends all."""
    from dinoswap.distributed import on_main, rank, together, world_size

    total, size = len(images.rows), images.batch_size
    missing = on_main(lambda: [first for first in range(0, total, PART) if not _file(out, part, first).is_file()])
    if missing and "patch" in frozen.kinds:
        on_main(lambda: _allocate(out / f"{part}-patch.npy", (total, *tokens)))
    shares = [
        [start for first in missing[number :: world_size()] for start in range(first, min(first + PART, total), size)]
        for number in range(world_size())
    ]
    done = total - sum(min(PART, total - first) for first in missing)
    yield done
    own = _written(images, frozen, tokens[1], out, part, shares[rank()])
    for starts in zip_longest(*shares):
        together(lambda: next(own, None))
        done += sum(min(size, total - start) for start in starts if start is not None)
        yield done


def _written(
    images: "EvalImages", frozen: "FrozenBackbone", width: int, out: Path, part: str, starts: Sequence[int]
) -> Iterator[None]:
    """Computes the features, vectors of `width`, of the batches that start at these rows, which make whole files, and
    yields after each batch."""
    total, rows = len(images.rows), _empty(frozen)
    patches = np.lib.format.open_memmap(out / f"{part}-patch.npy", mode="r+") if "patch" in frozen.kinds else None
    for start, batch in zip(starts, images.batches(starts), strict=True):
        features = frozen.features(batch.pixels) if batch.rows else {}
        if patches is not None and batch.rows:
            patches[batch.rows] = features.pop("patch").numpy()
        rows["row"] += batch.rows
        rows["name"] += [clean(images.images.name(row)) for row in batch.rows]
        rows["label"] += [images.images.label(row) for row in batch.rows]
        for kind, values in features.items():
            rows[kind] += list(values.numpy())
        reached = min(start + images.batch_size, total)
        if reached % PART == 0 or reached == total:
            if patches is not None:
                patches.flush()
            write_atomically(_file(out, part, reached - 1), _parquet(rows, width))
            rows = _empty(frozen)
        yield


def _file(out: Path, part: str, row: int) -> Path:
    """Returns the path of the Parquet file that has this row."""
    return out / f"{part}-{row // PART:06d}.parquet"


def _empty(frozen: "FrozenBackbone") -> Rows:
    """Returns empty columns of a file: row, name, label, and each kind of vector."""
    return {name: [] for name in ("row", "name", "label", *(kind for kind in frozen.kinds if kind != "patch"))}


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    """Makes the array of all patch tokens, zero everywhere, unless it is there. Raises OSError where the disk has no
    room for it, which would end the process where it is written to."""
    if path.is_file():
        return
    temporary = path.with_suffix(".tmp")
    np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
    with temporary.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    temporary.replace(path)


def _parquet(rows: Rows, width: int) -> bytes:
    """Returns a Parquet file of these columns, with vectors [width]."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {"row": pa.array(rows["row"], pa.int64()), "name": pa.array(rows["name"], pa.string())}
    columns["label"] = pa.array(rows["label"], pa.int64())
    for kind in sorted(rows.keys() - columns.keys()):
        vectors = np.array(rows[kind], np.float32).ravel()
        columns[kind] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), width)
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dinoswap-embed",
        description="The features of every image of a data set as Parquet, all patch tokens as npy.",
        epilog="example: dinoswap-embed RUN data=image_folder data.path=images -o features",
    )
    add, networks = parser.add_argument, ("teacher", "student")
    add("--version", action="version", version=f"dinoswap {__version__}")
    add("what", metavar="RUN_OR_FILE", type=Path, help="run, checkpoint, weight file, or folder of one")
    add("overrides", nargs="*", help=f"keys of {', '.join(CHANGEABLE)} (default: the run's own)")
    add("--network", choices=networks, default="teacher", metavar="NAME", help="teacher or student of a run (teacher)")
    add("--heads", type=int, metavar="N", help="attention heads of a weight file (its width / 64)")
    kinds = f"of {', '.join(KINDS)} ({' '.join(VECTORS)})"
    add("--features", nargs="+", choices=KINDS, default=[*VECTORS], metavar="KIND", help=kinds)
    add("-o", "--out", type=Path, required=True, help="folder, which may have a part of them")
    picture = f"nearest training images of each: OUT/{PICTURE}"
    add("--query", nargs="+", type=Path, default=[], metavar="FILE", help=picture)
    add("--neighbours", type=int, default=8, metavar="K", help="of each query (8)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Writes what the command line asks for, in the processes that were launched. Raises ConfigError for what the user
    has to change, and OSError where another rank failed."""
    config, folder = config_of(arguments.what)
    config = with_overrides(config, arguments.overrides)
    check_evaluation(config, of_weights=folder is None)
    check_query(arguments)
    from dinoswap.distributed import RankFailed
    from dinoswap.distributed.group import process_group

    try:
        with process_group(TIMEOUT_MINUTES):
            run_here(arguments, config)
    except RankFailed as error:  # `main` knows OSError without importing torch
        raise OSError(str(error)) from error


def check_query(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where no neighbours of the query can be found."""
    if arguments.neighbours < 1:
        raise ConfigError(f"--neighbours {arguments.neighbours}: at least one has to be shown")
    if arguments.query and not set(VECTORS) & set(arguments.features):
        raise ConfigError(f"--query: images are compared by {' or '.join(VECTORS)}; add one of them to --features")


def run_here(arguments: argparse.Namespace, config: Config) -> None:
    """Writes what the command line asks for, as one of the ranks. Raises ConfigError for what the user has to
    change."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from dinoswap.backbone import read
    from dinoswap.distributed import gathered, is_main, on_main, require_same
    from dinoswap.evaluation.features import EvalImages, FrozenBackbone, clean_crop
    from dinoswap.trainer import PRODUCTS, prepared_device

    source, loading = build_source(config), loading_settings(config)
    queries = [decoded(path, loading.decoding) for path in arguments.query]
    data, backbone = DataFacts.of(config, source), read(arguments.what, arguments.network, arguments.heads)
    for note in backbone.notes if is_main() else ():
        print(f"{arguments.what}: {note}", file=sys.stderr)
    trainer, evaluation = construct(TrainerSettings, config["trainer"], "trainer"), evaluation_settings(config)
    device = prepared_device(trainer)
    size = evaluation.size or backbone.config["size"]
    kinds = tuple(sorted(set(arguments.features)))
    settings = {"size": size, "resize": evaluation.resize, "mean": loading.mean, "std": loading.std}
    description = describe(backbone, data, settings | {"precision": trainer.arithmetic, "features": kinds})
    require_same(description, "give all ranks the same weights, images and command")
    mean, std = (torch.tensor(values, device=device) for values in (loading.mean, loading.std))
    network = backbone.network.to(device)
    tokens = math.prod(network.patch_embed.grid(size, size)), network.embed_dim
    frozen = FrozenBackbone(network, mean, std, device, PRODUCTS.get(trainer.precision), kinds)
    on_main(lambda: begin(arguments.out, description))
    with Progress(console=Console(stderr=True), disable=not is_main()) as progress:
        for part, images in (("train", source.train()), ("test", source.test())):
            if images is None:
                continue
            batch = min(PART, 1 << evaluation.batch_size.bit_length() - 1)  # divides PART
            crops = EvalImages(images, size, evaluation.resize, None, batch, workers=loading.workers)
            task = progress.add_task(part, total=len(images))
            for done in embed(crops, frozen, tokens, arguments.out, part):
                progress.update(task, completed=done)
            corrupt = {row: reason for corrupt in gathered(crops.corrupt) for row, reason in corrupt.items()}
            if not is_main():
                continue
            for row, reason in sorted(corrupt.items()):
                print(f"{images.name(row)}: left out, {reason}", file=sys.stderr)
            names = f" of the classes {', '.join(images.classes)}" if images.classes else ""
            print(f"{arguments.out}/{part}-*.parquet: {len(images) - len(corrupt)} images{names}")
    if queries:
        crops = EvalImages(source.train(), size, evaluation.resize)
        shown = [
            (path.name, clean_crop(pixels, size, crops.resize))
            for path, pixels in zip(arguments.query, queries, strict=True)
        ]
        on_main(lambda: draw_neighbours(shown, crops, frozen, arguments.out, arguments.neighbours))


def decoded(path: Path, decoding: Decoding) -> Pixels:
    """Returns the pixels of an image in a file. Raises ConfigError where there is none."""
    try:
        return decode(path.read_bytes(), path.name, decoding)
    except (OSError, CorruptImage) as error:
        reason = error.reason if isinstance(error, CorruptImage) else error.strerror
        raise ConfigError(
            f"--query {path}: {reason}; give image files, and keys of the config before --query"
        ) from error


def draw_neighbours(
    queries: Sequence[tuple[str, Pixels]], images: "EvalImages", frozen: "FrozenBackbone", out: Path, count: int
) -> None:
    """Writes neighbours.png: a row for each query, a name and a crop [S, S, 3], with the `count` training images
    nearest to it. Raises ValueError where no image has features."""
    import torch

    from dinoswap.evaluation.nearest import nearest
    from dinoswap.evaluation.visualise import neighbours_figure
    from dinoswap.files.pictures import save_png

    kind = next(kind for kind in VECTORS if kind in frozen.kinds)
    pixels = torch.from_numpy(np.stack([crop for _, crop in queries])).permute(0, 3, 1, 2)
    vectors = frozen.features(pixels)[kind].numpy()
    files = (_file(out, "train", first) for first in range(0, len(images.rows), PART))
    per_query, classes = nearest(files, kind, vectors, count), images.images.classes
    if not per_query[0]:
        raise ValueError(f"{out}: no image of the train part could be decoded, so none is near; check the data")
    rows = []
    for (name, crop), neighbours in zip(queries, per_query, strict=True):
        rows.append([(crop, [f"by {kind}", name])])
        for neighbour in neighbours:
            label = "" if neighbour.label is None else classes[neighbour.label] if classes else neighbour.label
            text = [f"{neighbour.similarity:.3f}  {label}", neighbour.name]
            rows[-1].append((images.crop(neighbour.row).transpose(1, 2, 0), text))
    save_png(out / PICTURE, neighbours_figure(rows))
    print(f"{out / PICTURE}: the {len(per_query[0])} nearest training images, by the cosine of {kind}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console script and returns its exit status: 2 for what the user has to change, 1 for what failed, else
    0."""
    try:
        run(parser().parse_intermixed_args(argv))
    except (ConfigError, CheckpointError, CorruptImage, ValueError, OSError) as error:
        print(f"dinoswap-embed: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
