"""A load in stretches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.scenario import Good
from loadtests.windows import edges, knee, windows
from tests.loadtests.made import outcome, scenario


def test_a_window_counts_arrivals_answers_and_what_is_in_flight() -> None:
    outcomes = [
        outcome(arrived_s=0.5, end=1000.0, output_tokens=10),  # to 1.5
        outcome(arrived_s=1.0, end=4000.0),  # to 5
        outcome(arrived_s=1.2, error="x", end=0.0),
    ]

    first, second = windows(outcomes, [0, 1, 2], Good(end_to_end_ms=2000))

    assert (first.offered_per_s, second.offered_per_s) == (1, 2)
    assert (first.answered_per_s, second.answered_per_s) == (0, 1)
    assert (first.good_per_s, second.good_per_s) == (1, 0)
    assert second.tokens_per_s == 10
    assert (first.in_flight, second.in_flight) == (0.5, 1.5)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3000)), max_size=30))
def test_no_request_is_counted_twice_or_lost(times: list[tuple[float, float]]) -> None:
    outcomes = [outcome(arrived_s=arrived, end=took) for arrived, took in times]

    found = windows(outcomes, [0, 1, 4, 13], Good())

    def total(name: str) -> float:
        return sum(getattr(one, name) * (one.end_s - one.begin_s) for one in found)

    assert total("offered_per_s") == pytest.approx(len(times))
    assert total("answered_per_s") == pytest.approx(len(times))
    assert total("in_flight") == pytest.approx(sum(took for _, took in times) / 1000)


def test_stretches_are_the_stages_of_a_shape_after_the_warmup() -> None:
    shape = {"kind": "ramp", "from_per_s": 1, "to_per_s": 4, "steps": 4, "duration_s": 40}

    assert edges(scenario(shape=shape, warmup_s=12)) == [12, 20, 30, 40]
    assert edges(scenario(shape=shape)) == [0, 10, 20, 30, 40]


def test_a_steady_load_has_even_stretches() -> None:
    found = edges(scenario(warmup_s=2))

    assert (found[0], found[-1]) == (2, pytest.approx(10))


def test_the_knee_is_where_throughput_stops_following() -> None:
    points = [(float(n), min(n, 8.0)) for n in range(1, 25)]

    assert knee(points) == (8.0, 8.0)
    assert knee([(float(n), float(n)) for n in range(1, 25)]) is None
    assert knee(points[:3]) is None
    assert knee([(1.0, 1.0)] * 5) is None
