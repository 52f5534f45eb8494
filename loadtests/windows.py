"""A load in stretches of time: how latency and throughput go with what was offered."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtests.outcomes import Outcome, output_tokens
from loadtests.plan import length_s
from loadtests.scenario import Good, Scenario

EVEN_WINDOWS = 24
LEAST_BEND = 0.1


@dataclass(frozen=True)
class Window:
    """A stretch of a load, all of whose figures are means or percentiles over it."""

    begin_s: float
    end_s: float
    offered_per_s: float
    answered_per_s: float
    good_per_s: float
    tokens_per_s: float
    in_flight: float
    """Requests sent and not yet answered, on average."""
    arrived: tuple[Outcome, ...]
    """Answered ones, by their arrival."""


def windows(outcomes: Sequence[Outcome], edges: Sequence[float], good: Good) -> list[Window]:
    """The load between each two edges."""
    return [_window(outcomes, begin, end, good) for begin, end in pairwise(edges)]


def _window(outcomes: Sequence[Outcome], begin: float, end: float, good: Good) -> Window:
    length_s = end - begin
    arrived = [outcome for outcome in outcomes if begin <= outcome.arrived_s < end]
    ended = [
        outcome for outcome in outcomes if begin <= outcome.ended_s < end and not outcome.failed
    ]
    busy_s = sum(
        max(0.0, min(end, outcome.ended_s) - max(begin, outcome.arrived_s)) for outcome in outcomes
    )
    return Window(
        begin_s=begin,
        end_s=end,
        offered_per_s=len(arrived) / length_s,
        answered_per_s=len(ended) / length_s,
        good_per_s=sum(outcome.is_good(good) for outcome in arrived) / length_s,
        tokens_per_s=output_tokens(ended) / length_s,
        in_flight=busy_s / length_s,
        arrived=tuple(outcome for outcome in arrived if not outcome.failed),
    )


def edges(scenario: Scenario) -> list[float]:
    """Where stretches begin and end: a shape's stages, else even ones, after the warm-up."""
    stages = scenario.stages
    if len(stages) >= 3:
        moments = [0.0]
        for stage in stages:
            moments.append(moments[-1] + stage.duration_s)
        inside = [moment for moment in moments if moment > scenario.warmup_s]
        return [max(scenario.warmup_s, moments[-len(inside) - 1]), *inside]
    step = (length_s(scenario) - scenario.warmup_s) / EVEN_WINDOWS
    return [scenario.warmup_s + step * number for number in range(EVEN_WINDOWS + 1)]


def knee(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Where throughput stops following concurrency: the point farthest above the chord.

    points: concurrency and throughput. None where the curve doesn't bend.
    """
    ordered = sorted(points)
    if len(ordered) < 4:
        return None
    (left, low), (right, high) = ordered[0], max(ordered, key=lambda point: point[1])
    right = max(right, ordered[-1][0])
    if right <= left or high <= low:
        return None

    def above(point: tuple[float, float]) -> float:
        return (point[1] - low) / (high - low) - (point[0] - left) / (right - left)

    best = max(ordered, key=above)
    return best if above(best) >= LEAST_BEND else None
