"""Search for the highest rate that passes, where each try is costly and noisy."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Where the search looks, and when it is content."""

    start: float
    least: float
    most: float
    precision: float = 0.1
    """The highest passing and the lowest failing rate are at most this share apart."""
    confirm: int = 2
    """So often the highest rate must pass again."""
    tries: int = 40


@dataclass(frozen=True)
class Found:
    """The highest rate that passed and the lowest above it that failed, if any."""

    passing: float | None
    failing: float | None
    confirmed: bool


def search(passes: Callable[[float], bool], limits: Limits) -> Found:
    """Double or halve until a rate passes and one fails, bisect, then confirm.

    A rate that fails when it is confirmed counts as failing, and the search goes on below it.
    """
    passed: dict[float, int] = {}
    failing: float | None = None
    for _ in range(limits.tries):
        low = max(passed, default=None)
        rate = _next(low, failing, passed, limits)
        if rate is None:
            return Found(low, failing, confirmed=low is not None)
        if passes(rate):
            passed[rate] = passed.get(rate, 0) + 1
        else:
            failing = rate
            passed = {one: times for one, times in passed.items() if one < rate}
    return Found(max(passed, default=None), failing, confirmed=False)


def _next(
    low: float | None, failing: float | None, passed: dict[float, int], limits: Limits
) -> float | None:
    """The next rate to try; None: content, or nothing passes."""
    if low is None:
        rate = limits.start if failing is None else failing / 2
        return rate if rate >= limits.least else None
    if failing is None and low < limits.most:
        return min(low * 2, limits.most)
    if failing is not None and failing / low > 1 + limits.precision:
        return math.sqrt(low * failing)
    return low if passed[low] <= limits.confirm else None
