"""Studies over the axes: which runs, what they found, how sure that is, what it cost.

`load_runs` and `load_curves` read run folders as pandas frames, `load_effects` the effects of a study over training,
`load_hours` the hours until its runs have a value.
They are imported when they are first asked for: the commands that plan and follow a study do without pandas, whose
import would be most of their time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinoswap.studies.report.effects_frame import load_effects
    from dinoswap.studies.report.hours_frame import load_hours
    from dinoswap.studies.runs import load_curves, load_runs

__all__ = ["load_curves", "load_effects", "load_hours", "load_runs"]
MODULES = {
    "load_curves": "runs",
    "load_effects": "report.effects_frame",
    "load_hours": "report.hours_frame",
    "load_runs": "runs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
