"""Every number of a report as JSON; null where there is none. The report can be made again from it (rows.py)."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from dinoswap.studies.costs import COSTS
from dinoswap.studies.estimates import percent
from dinoswap.studies.report.analysis import Analysis, Result, corners
from dinoswap.studies.report.collect import Run
from dinoswap.studies.report.prices import Prices
from dinoswap.studies.statistics import Attribution, Decision, Effect, Estimate
from dinoswap.studies.time_to_value import CellHours


def as_json(analysis: Analysis) -> str:
    """Returns the content of report.json."""
    study, collected = analysis.study, analysis.collected
    images = collected.images_per_step
    content = {
        "study": study.name,
        "question": study.question,
        "answer": analysis.answer,
        "design": study.design,
        "notes": collected.design.notes,
        "file": study.name if study.path.parent.name == "ablations" else str(study.path),
        "command_line": study.command_line,
        "factors": study.factors,
        "base": study.base,
        "seeds": study.seeds,
        "reference": analysis.reference,
        "cells": [
            {
                "name": cell.name,
                "levels": dict(cell.levels),
                "run_id": cell.run_id,
                "diagnostics": collected.diagnostics.get(cell.name, {}),
                **({"images_per_step": images[cell.name]} if cell.name in images else {}),
            }
            for cell in collected.design.cells
        ],
        "differing": collected.differing,
        "results": [_result(analysis, result) for result in analysis.results],
        "prices": _prices(analysis.prices) if analysis.prices else None,
        "runs": [_run(analysis, run) for run in collected.runs],
        "unasked": collected.unasked,
        **({"passed_over": collected.passed_over} if collected.passed_over else {}),
        **({"looks": asdict(study.looks)} if study.looks else {}),
        **({"seen": collected.seen} if collected.seen else {}),
    }
    return compact(json.dumps(plain(content), indent=1, allow_nan=False)) + "\n"


def compact(text: str) -> str:
    """Returns indented JSON with each list of numbers alone in one line. No string is touched, as none has a line
    break in it."""
    return re.sub(r"\[\n([^\"\[\]{}]+)\n *\]", lambda match: f"[{' '.join(match[1].split())}]", text)


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: None in place of NaN and infinity, lists in place of other sequences."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return [plain(item) for item in value]


def _result(analysis: Analysis, result: Result) -> dict[str, Any]:
    """Returns all numbers of one metric, as report.json has them."""
    by_cell = result.outcomes.groupby("cell", sort=False)["value"]
    factorial = result.factorial
    return {
        "metric": asdict(result.metric),
        "cells": {name: {"mean": cell.mean(), "sd": cell.std(), "values": int(cell.count())} for name, cell in by_cell},
        "effects": _decisions(result.decisions),
        "interactions": _decisions(result.interactions),
        "aliases": factorial.aliases if factorial else {},
        "residual": {"sd": factorial.sd, "df": factorial.df} if factorial else None,
        "attribution": _attribution(analysis, result, result.attribution) if result.attribution else None,
        "note": result.note,
        **({} if analysis.collected.in_loop is None else {"over_training": _course(analysis, result)}),
    }


def _course(analysis: Analysis, result: Result) -> dict[str, Any] | None:
    """Returns the effects on a metric at each evaluation in the loop; None where it was not measured there."""
    course = next((course for course in analysis.courses if course.metric == result.metric), None)
    if course is None:
        return None
    by_effect = zip(*(horizon.decisions for horizon in course.horizons), strict=True)
    agreements = [asdict(with_end) for with_end in course.agreements]
    return {
        "run_steps": course.steps,
        "steps": course.at,
        "effects": {
            decisions[0].effect.name: {
                **{key: [getattr(decision.effect, key) for decision in decisions] for key in ("mean", "low", "high")},
                "p_adjusted": [decision.p_adjusted for decision in decisions],
                "appears": course.appears(index),
            }
            for index, decisions in enumerate(by_effect)
        },
        "agreement": {key: [with_end[key] for with_end in agreements] for key in agreements[0]},
    }


def _decisions(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Returns the numbers and the words of each decision."""
    return [
        {
            **_estimate(decision.effect),
            "kind": decision.kind,
            "words": decision.words,
            "p_adjusted": decision.p_adjusted,
            "p_equivalent_adjusted": decision.p_equivalent_adjusted,
            "p_failures_adjusted": decision.p_failures_adjusted,
            "seeds_for_smallest": decision.seeds_for_smallest,
            "seeds_for_seen": decision.seeds_for_seen,
            "family": decision.size,
            "alpha": decision.alpha,
        }
        for decision in decisions
    ]


def _estimate(estimate: Estimate) -> dict[str, Any]:
    """Returns the fields of an estimate and what follows from them, by name."""
    derived = ("low", "high", "p", "p_equivalent", "sd", *(("p_floor",) if isinstance(estimate, Effect) else ()))
    content = asdict(estimate) | {name: getattr(estimate, name) for name in derived}
    look = content.pop("look")
    return content | ({"look": look, "lasting": estimate.lasting._asdict()} if look else {})


def _attribution(analysis: Analysis, result: Result, attribution: Attribution) -> dict[str, Any]:
    """Returns the numbers of an attribution, and the corners of the design that it lies between."""
    start, end = corners(analysis.study)
    return {
        "start": start,
        "end": end,
        "gap": _decisions([result.gap] if result.gap else []),
        "values": _decisions(result.shares),
        "model_gap": attribution.model_gap,
        "bootstrap": attribution.bootstrap,
        "per_seed": attribution.per_seed.to_dict("index"),
        "clear": attribution.clear,
        "measured": attribution.measured,
        "unused": attribution.unused,
    }


def _prices(prices: Prices) -> dict[str, Any]:
    """Returns what the effects and cells of a study cost. Ratios are in percent, less 100."""
    return {
        "metric": prices.metric.name,
        "time_per_image": {effect.decision.effect.name: _ratio(effect.log_time) for effect in prices.effects},
        "fronts": {
            cost: {cell: standing._asdict() for cell, standing in front.items()}
            for cost, front in prices.fronts.items()
        },
        "no_candidates": prices.no_candidates,
        "hours": [
            {**target._asdict(), "mean": target.mean, "cells": {cell.cell: _hours(cell) for cell in cells}}
            for target, cells in prices.hours
        ],
    }


def _ratio(log_ratio: Estimate) -> dict[str, Any]:
    return {**percent(log_ratio)._asdict(), "df": log_ratio.df, "seeds": log_ratio.seeds, "note": log_ratio.note}


def _hours(cell: CellHours) -> dict[str, Any]:
    return {
        **{name: getattr(cell, name) for name in ("hours", "reached", "runs", "within")},
        "ratio": _ratio(cell.log_ratio) if cell.log_ratio else None,
    }


def _run(analysis: Analysis, run: Run) -> dict[str, Any]:
    """Returns what report.json says of a run, whichever state it is in."""
    reported = run.record.get("metrics") or {}
    names = [*(metric.name for metric in analysis.study.metrics if metric.name in {*reported, *COSTS}), *COSTS]
    in_loop = analysis.collected.in_loop
    known = ("git", "versions", "hardware", "started", "ended", "steps", "restarts")
    return {
        "cell": run.entry.cell,
        "seed": run.entry.seed,
        "run_id": run.entry.run_id,
        "status": run.status,
        "note": run.note,
        "command": run.command,
        "wall_hours": run.wall_hours,
        **{name: run.value(name) for name in dict.fromkeys(names)},
        **{name: run.record.get(name) for name in known},
        **({} if in_loop is None else {"in_loop": _in_loop(analysis, run, in_loop)}),
    }


def _in_loop(analysis: Analysis, run: Run, in_loop: pd.DataFrame) -> dict[str, list[float]]:
    """Returns what a run measured in the loop, at the steps of `over_training`."""
    own = in_loop[(in_loop["cell"] == run.entry.cell) & (in_loop["seed"] == run.entry.seed)]
    by_step = {str(name): values.set_index("step")["value"] for name, values in own.groupby("name")}
    courses = [course for course in analysis.courses if course.metric.name in by_step]
    return {course.metric.name: by_step[course.metric.name].loc[course.at].tolist() for course in courses}
