"""Run our code on a folder of parity fixtures and compare number by number.

    python tools/check_parity.py official --dir tests/parity/official
    python tools/check_parity.py legacy   --dir tests/parity/legacy
    python tools/check_parity.py dinov3   --dir tests/parity/dinov3 --scenario recipe
    python tools/check_parity.py masks    --dir tests/parity/official
    python tools/check_parity.py masks    --dir tests/parity/legacy
    python tools/check_parity.py da3      --dir tests/parity/da3

`official` takes every kind of file that it knows: training scenarios (train_step_dinov2*.npz, through the trainer's own
step), networks, heads, losses, stochastic depth, schedules, parameter groups. `legacy` likewise: training scenarios
(train_step_legacy*.npz, train_step_fixed*.npz, with the trainer that preset=legacy builds), networks, losses, schedules
and groups. `dinov3` takes training scenarios (train_step_dinov3*.npz, with the trainer that preset=dinov3 builds),
losses, schedules, networks, names and shapes of released files, parameter groups, masks (but no subsets of batches,
which we do not form), which crop sizes each step has, and the crops of an image.
`masks` compares draws, collate and generator states of either side bit for bit. `da3` compares tokens of
Depth Anything 3 (da3_*_io.npz) and the names and shapes in its published files (keys_*.json). --name picks one file,
--scenario one of the scenarios, sections or cases in it.
--device cuda compares networks, losses and steps as a GPU computes them, without TF32, against the tolerances of the
CPU. What was drawn from the CPU's generator is left out; tables, masks and crops are made on the CPU.
Exit status 1 when a quantity is out of tolerance, 2 when there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dinoswap.trainer import resolve_device
from parity import (
    da3,
    dinov3_losses,
    dinov3_networks,
    dinov3_tables,
    dinov3_views,
    legacy_losses,
    legacy_masks,
    legacy_networks,
    legacy_step,
    legacy_tables,
    losses,
    masks,
    networks,
    tables,
    train_step,
)
from parity.rows import Row, Scenarios

KINDS: dict[str, dict[str, Callable[[Path], Scenarios]]] = {
    "official": {
        "train_step_dinov2*.npz": train_step.scenarios,
        "vit_dinov2*.npz": networks.vit_scenarios,
        "head_dinov2*.npz": networks.head_scenarios,
        "droppath*.npz": networks.droppath_scenarios,
        "losses_dinov2*.npz": losses.scenarios,
        "schedules*.json": tables.schedule_scenarios,
        "param_groups*.json": tables.group_scenarios,
    },
    "legacy": {
        "train_step_legacy*.npz": legacy_step.scenarios,
        "train_step_fixed*.npz": legacy_step.scenarios,
        "vit_legacy*.npz": legacy_networks.scenarios,
        "losses_legacy*.npz": legacy_losses.scenarios,
        "optim_legacy*.json": legacy_tables.scenarios,
    },
    "dinov3": {
        "train_step_dinov3*.npz": train_step.dinov3_scenarios,
        "losses_dinov3*.npz": dinov3_losses.scenarios,
        "schedules_dinov3*.json": dinov3_tables.scenarios,
        "resolution_dinov3*.json": tables.resolution_scenarios,
        "vit_dinov3*.npz": dinov3_networks.scenarios,
        "keys_dinov3*.json": dinov3_networks.key_scenarios,
        "param_groups_dinov3*.json": tables.dinov3_group_scenarios,
        "masking_dinov3*.json": masks.scenarios,
        "augment_dinov3*.npz": dinov3_views.scenarios,
    },
    "masks": {
        "mask*.json": lambda path: (legacy_masks if "legacy" in path.stem else masks).scenarios(path),
    },
    "da3": {
        "da3_*_io.npz": da3.scenarios,
        "keys_*.json": da3.key_scenarios,
    },
}


CPU = torch.device("cpu")


def rows_of(
    kind: str, folder: Path, name: str | None = None, scenario: str | None = None, device: torch.device = CPU
) -> Iterator[Row]:
    for pattern, read in KINDS[kind].items():
        for path in sorted(folder.glob(pattern)):
            if name not in (None, path.stem, path.name):
                continue
            with computing_on(device if path.suffix == ".npz" and not path.match("augment*") else CPU):
                made = [
                    replace(row, name=f"{path.stem}:{case}/{row.name}")
                    for case, rows in read(path).items()
                    if scenario in (None, case)
                    for row in rows()
                ]
            yield from made


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """A context that computes by deterministic algorithms on a CPU. Another device becomes torch's default, on which
    fixtures and networks are placed: it need not have such algorithms, and computes float32 products in float32."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(device == CPU)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with nullcontext() if device == CPU else device:
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def report(rows: list[Row]) -> bool:
    """Prints the table and the last line; whether everything is within its tolerance."""
    table = Table("quantity", "max abs", "max rel", "error", "tolerance", "verdict")
    for row in rows:
        verdict = "ok" if row.passed else "FAIL"
        table.add_row(
            escape(row.name), *(f"{v:.1e}" for v in (row.absolute, row.relative, row.error, row.tolerance)), verdict
        )
    Console(width=180 if not sys.stdout.isatty() else None).print(table)
    passed = all(row.passed for row in rows)
    worst = max(row.error for row in rows)
    print(f"parity: {len(rows)} quantities, worst {worst:.1e}, {'PASS' if passed else 'FAIL'}")
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--dir", type=Path, required=True, help="a folder of fixtures")
    parser.add_argument("--scenario", help="only this training scenario, section or case")
    parser.add_argument("--name", help="only this file (its name without the ending)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    arguments = parser.parse_args(argv)
    try:
        device = resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    rows = list(rows_of(arguments.kind, arguments.dir, arguments.name, arguments.scenario, device))
    if not rows:
        print(f"check_parity: no fixture of kind '{arguments.kind}' matches in {arguments.dir}", file=sys.stderr)
        return 2
    return 0 if report(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
