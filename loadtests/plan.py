"""Who arrives when, decided before the load begins."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random

from loadtests.scenario import Kind, Replay, Scenario
from loadtests.shapes import poisson_arrivals
from loadtests.traces import Recorded, read_trace


@dataclass(frozen=True)
class Arrival:
    """One request of an open loop, before it has a text."""

    number: int
    at_s: float
    kind: Kind
    recorded: Recorded | None = None
    """What a trace says of it."""


def arrivals(scenario: Scenario, worker: int = 0, workers: int = 1) -> Iterator[Arrival]:
    """One worker's share of all arrivals, ascending. Raises ScenarioError.

    All workers draw the same plan and take turns in it.
    """
    return islice(_all(scenario), worker % workers, None, workers)


def _all(scenario: Scenario) -> Iterator[Arrival]:
    kinds = _kinds(scenario)
    if scenario.replay is not None:
        for number, recorded in enumerate(_trace(scenario.replay)):
            yield Arrival(number, recorded.at_s, next(kinds), recorded)
        return
    for number, at_s in enumerate(poisson_arrivals(scenario.stages, scenario.seed)):
        yield Arrival(number, at_s, next(kinds))


@lru_cache(maxsize=1)
def _trace(replay: Replay) -> list[Recorded]:
    return read_trace(replay)


def _kinds(scenario: Scenario) -> Iterator[Kind]:
    """Kinds at random, by the weights of the mix."""
    generator = Random(scenario.seed)  # noqa: S311  # draws a load
    kinds, weights = list(scenario.mix), list(scenario.mix.values())
    while True:
        yield generator.choices(kinds, weights)[0]


def arrivals_planned(scenario: Scenario) -> int | None:
    """How many requests an open loop sends; None in a closed loop, where the server decides."""
    return sum(1 for _ in _all(scenario)) if scenario.open_loop else None


def length_s(scenario: Scenario) -> float:
    """How long requests go on arriving, in seconds."""
    if scenario.replay is not None:
        return max(1.0, _trace(scenario.replay)[-1].at_s)
    return scenario.length_s
