"""What runs out first."""

from typing import Any

import pytest

from loadtests.outcomes import Outcome
from loadtests.run import Result
from loadtests.sampling import Sample
from loadtests.saturation import (
    API_CPU,
    GENERATOR,
    KV_CACHE,
    PACE,
    PLACES,
    SEQUENCES,
    SLOTS,
    UNKNOWN,
    Resource,
    first_full,
)
from tests.loadtests.made import outcome, result, scenario


def run(
    rate: float, begin: dict[str, Any], end: dict[str, Any], outcomes: list[Outcome] | None = None
) -> Result:
    made = scenario(arrivals=[{"rate_per_s": rate, "duration_s": 10}])
    return result(made, outcomes or [outcome()] * 10, [Sample(0, begin), Sample(10, end)])


@pytest.mark.parametrize(
    ("begin", "end", "resource"),
    [
        ({"kv_usage": 0.95}, {"kv_usage": 0.97}, KV_CACHE),
        ({"preemptions": 0}, {"preemptions": 4, "kv_usage": 0.5}, KV_CACHE),
        ({"adapters_waiting": 2}, {"adapters_waiting": 1, "waiting": 3}, SLOTS),
        ({"version_evictions": 0}, {"version_evictions": 6}, PLACES),
        ({"cpu_s": 0}, {"cpu_s": 9.5}, API_CPU),
        ({"waiting": 4, "kv_usage": 0.3}, {"waiting": 8, "kv_usage": 0.3}, SEQUENCES),
        ({"queued": 4, "waiting": 0}, {"queued": 8, "waiting": 0}, SEQUENCES),
        ({"waiting": 0, "kv_usage": 0.2}, {"waiting": 0, "kv_usage": 0.2}, PACE),
        ({}, {}, PACE),
    ],
)
def test_the_servers_figures_tell_what_is_full(
    begin: dict[str, Any], end: dict[str, Any], resource: Resource
) -> None:
    assert first_full([run(1, begin, end)]) is resource


def test_a_server_without_figures_is_not_called_slow() -> None:
    assert first_full([result(scenario(), [outcome()])]) is UNKNOWN


def test_what_explains_the_rest_is_named() -> None:
    full = {"kv_usage": 0.99, "waiting": 20, "queued": 5}

    assert first_full([run(1, full, full)]) is KV_CACHE


def test_the_lowest_rate_at_which_something_is_full_decides() -> None:
    calm, waiting = {"kv_usage": 0.1, "waiting": 0}, {"kv_usage": 0.1, "waiting": 2}
    full = {"kv_usage": 0.99, "waiting": 9}

    runs = [run(8, full, full), run(4, waiting, waiting), run(1, calm, calm)]

    assert first_full(runs) is SEQUENCES


def test_a_late_generator_is_no_limit_of_the_server() -> None:
    late = [outcome(late_ms=500.0)] * 10

    assert first_full([run(1, {"waiting": 1}, {"waiting": 1}, late)]) is GENERATOR
