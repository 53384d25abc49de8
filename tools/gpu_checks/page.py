"""What the checks found, as a page and as a table for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from dinoswap.run.provenance import in_words
from gpu_checks.numbers import Numbers
from gpu_checks.resume import promise

APART = ("check", "of", "failed", "skipped", "seconds", "larger")
SPEED = {
    "of": "recipe",
    "images": "images",
    "limit": "limited by",
    "images per second": "images / s",
    "planned images per second": "planned",
    "peak GB": "peak GB",
    "reserved GB": "reserved",
    "planned GB": "planned",
    "share of the peak": "share of peak",
}
"""What stands in the columns of the table of speed."""


def verdict(row: Numbers) -> str:
    return "FAILED" if row["failed"] else "skipped" if "skipped" in row else "ok"


def found(row: Numbers) -> str:
    """What a check found, in words; of lists, such as losses, the page has nothing."""
    numbers = [
        f"{key}: {shown(value)}" for key, value in row.items() if key not in APART and not isinstance(value, list)
    ]
    named = [f"{key}: {', '.join(value)}" for key, value in row.items() if key not in APART and of_words(value)]
    return "; ".join(filter(None, [row["failed"], row.get("skipped"), *numbers, *named]))


def of_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def terminal_table(rows: Sequence[Numbers]) -> Table:
    made = Table("check", "of", "", "found", "s")
    for row in rows:
        made.add_row(row["check"], row["of"], verdict(row), found(row), str(row["seconds"]))
    return made


def page(report: Numbers) -> str:
    """README.md of what check_gpu.json holds."""
    rows, machine = report["rows"], report["machine"]
    where = f"{machine['gpu']}, and on " if machine.get("gpu") else ""
    counts = {said: sum(verdict(row) == said for row in rows) for said in ("ok", "FAILED", "skipped")}
    seconds = sum(row["seconds"] for row in rows)
    lines = [
        "# What a GPU does",
        "",
        f"`{report['command']}` on {where}{in_words(machine)}.",
        f"{counts['ok']} checks passed, {counts['FAILED']} failed, {counts['skipped']} were skipped; {seconds:.0f} s.",
    ]
    if report["device"] == "cpu":
        lines += ["", NO_GPU]
    if said := promise([row for row in rows if row["check"] == "resume" and "skipped" not in row]):
        lines += ["", f"**Of runs on this device README.md may say: {said}**"]
    lines += ["", "| check | of | verdict | found | s |", "|---|---|---|---|---|"]
    lines += [
        table_line([row["check"], row["of"], verdict(row), found(row), row["seconds"]])
        for row in rows
        if row["check"] != "speed" or verdict(row) != "ok"
    ]
    if larger := [line for row in rows for line in row.get("larger", [])]:
        lines += ["", "## Beyond the tolerance of a CPU", "", *(f"- {line}" for line in larger)]
    if timed := [row for row in rows if row["check"] == "speed" and verdict(row) == "ok"]:
        lines += ["", *speed_section(timed)]
    return "\n".join(lines) + "\n"


NO_GPU = (
    "**No GPU was at hand.** This page shows what the command writes: every figure is of a CPU, where checks are "
    "smaller, and none says anything of a GPU."
)


def speed_section(rows: Sequence[Numbers]) -> list[str]:
    """One row for each network, with the ratio of the plan to what was measured behind what was planned."""
    header = [title for key, title in SPEED.items() if any(key in row for row in rows)]
    lines = [
        "## Speed",
        "",
        "Steps in bf16 of the largest batch that fits, or that time was left for, of random crops. Behind what",
        "tools/plan.py plans for this GPU, its share of the measured. GB are 10^9 bytes, FLOPs those of the published",
        "algorithm, and the peak is that of the data sheet, or of a square product where this GPU has no plan.",
        "",
        table_line(header),
        "|---" * len(header) + "|",
    ]
    return lines + [table_line([speed_cell(row, key) for key in SPEED if any(key in r for r in rows)]) for row in rows]


def speed_cell(row: Numbers, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if key == "share of the peak":
        return f"{value:.1%}"
    measured = row.get({"planned images per second": "images per second", "planned GB": "peak GB"}.get(key, ""))
    return f"{shown(value)} ({value / measured:.2f})" if measured else shown(value)


def table_line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"
