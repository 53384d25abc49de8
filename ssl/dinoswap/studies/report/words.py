"""Numbers and verdicts as text."""

import math
from collections.abc import Sequence

from dinoswap.studies.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
ROUNDING = 9
"""Decimals beyond which a difference is that of floating point."""


def number(value: float | None, digits: int = 4) -> str:
    """'-' where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}".replace("-", MINUS)


def probability(p: float) -> str:
    return "<0.0001" if p < 1e-4 else number(p, 2)


def interval(estimate: Estimate) -> str:
    """'+1.2 [+0.3, +2.1]', as far as it is known, with three digits of what is uncertain."""
    if not math.isfinite(estimate.mean):
        return ""
    if not math.isfinite(estimate.se):
        return signed(estimate.mean)
    half = (estimate.high - estimate.low) / 2
    return f"{signed(estimate.mean, half)} {between(estimate.low, estimate.high, half)}"


def between(low: float, high: float, half: float | None = None) -> str:
    """'[+0.3, +2.1]'"""
    half = (high - low) / 2 if half is None else half
    return f"[{signed(low, half)}, {signed(high, half)}]" if math.isfinite(half) else "-"


def signed(value: float, uncertain: float | None = None) -> str:
    """With three digits, or rounded to the third digit of what is `uncertain`."""
    if not round(value, ROUNDING):
        return "0"
    if not uncertain or not round(uncertain, ROUNDING):
        return f"{value:+.3g}".replace("-", MINUS)
    decimals = max(0, 2 - math.floor(math.log10(uncertain)))
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def listed(names: Sequence[str]) -> str:
    """'a, b and c'"""
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def counted(count: int, what: str) -> str:
    """'1 run', '3 runs'"""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
