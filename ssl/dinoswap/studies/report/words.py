"""Numbers and verdicts as text."""

import math
from collections.abc import Sequence

from dinoswap.studies.estimates import percent
from dinoswap.studies.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
ROUNDING = 9
"""Decimals beyond which a difference is that of floating point."""


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with so many digits, or '-' where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}".replace("-", MINUS)


def probability(p: float) -> str:
    """Returns a p in two digits, "<0.0001" below that."""
    return "<0.0001" if p < 1e-4 else number(p, 2)


def interval(estimate: Estimate) -> str:
    """Returns an estimate as '+1.2 [+0.3, +2.1]', as far as it is known, with three digits of the half interval."""
    if not math.isfinite(estimate.mean):
        return ""
    if not math.isfinite(estimate.se):
        return signed(estimate.mean)
    half = (estimate.high - estimate.low) / 2
    return f"{signed(estimate.mean, half)} {between(estimate.low, estimate.high, half)}"


def ratio(log_ratio: Estimate | None) -> str:
    """Returns a ratio of which the logarithm was estimated as '+12.3 % [+8.1, +16.7]', as far as it is known."""
    if log_ratio is None or not math.isfinite(log_ratio.mean):
        return ""
    shown = percent(log_ratio)
    half = (shown.high - shown.low) / 2
    if not math.isfinite(half):
        return f"{signed(shown.mean)} %"
    return f"{signed(shown.mean, half)} % {between(shown.low, shown.high, half)}"


def over_all_looks(estimate: Estimate) -> str:
    """Returns the same with the interval that holds over all looks, where there is more than one."""
    if estimate.look is None or not estimate.tested:
        return interval(estimate)
    half = (estimate.lasting.high - estimate.lasting.low) / 2
    limits = between(estimate.lasting.low, estimate.lasting.high, half)
    return f"{signed(estimate.mean, half)} {limits}" if math.isfinite(half) else f"{signed(estimate.mean)} [any]"


def between(low: float, high: float, half: float | None = None) -> str:
    """Returns an interval as '[+0.3, +2.1]', rounded by its half width `half`, or '-' where it is not finite."""
    half = (high - low) / 2 if half is None else half
    return f"[{signed(low, half)}, {signed(high, half)}]" if math.isfinite(half) else "-"


def signed(value: float, uncertain: float | None = None) -> str:
    """Returns a number with its sign and three digits, or rounded to the third digit of the uncertainty `uncertain`."""
    if not round(value, ROUNDING):
        return "0"
    if not uncertain or not round(uncertain, ROUNDING):
        return f"{value:+.3g}".replace("-", MINUS)
    decimals = max(0, 2 - math.floor(math.log10(uncertain)))
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def listed(names: Sequence[str]) -> str:
    """Returns names as 'a, b and c'."""
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def counted(count: int, what: str) -> str:
    """Returns a count with its noun, as in '1 run' and '3 runs'."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
