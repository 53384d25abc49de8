"""Studies over the axes: which runs, what they found, how sure that is, what it cost.

`load_runs` and `load_curves` read run folders as pandas frames. They are imported when they are first asked for: the
commands that plan and follow a study do without pandas, whose import would be most of their time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinoswap.studies.runs import load_curves, load_runs

__all__ = ["load_curves", "load_runs"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dinoswap.studies import runs

    return getattr(runs, name)
