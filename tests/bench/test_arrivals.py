"""The open loop, on a stand-in whose pace is known."""

import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.arrivals import Arrival, OpenLoop, poisson
from bench.goodput import Full, Objective
from bench.servers import Launch, free_port, running

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that takes 60 ms for an answer, whatever it does beside."""
    port = free_port()
    command = [sys.executable, str(STAND_IN), str(port), "0"]
    start = Launch("stand-in", command, dict(os.environ), port)
    with running([start], tmp_path_factory.mktemp("logs")):
        yield port


def test_requests_are_sent_when_they_are_due_and_measured_from_then(port: int) -> None:
    arrivals = [Arrival(0.02 * number, {"messages": []}) for number in range(20)]
    with OpenLoop() as callers:
        outcomes = callers.run(port, arrivals, patience_s=5)

    assert [outcome.at_s for outcome in outcomes] == [arrival.at_s for arrival in arrivals]
    assert all(outcome.answered and outcome.tokens == 4 for outcome in outcomes)
    took = [outcome.end_s for outcome in outcomes if outcome.end_s is not None]
    assert 0.05 <= statistics.median(took) < 0.6  # one after the other it would take 1.2 s


def test_refusals_and_callers_that_hang_up_are_told_apart(port: int) -> None:
    arrivals = [Arrival(0, {"messages": ["refuse"]}), Arrival(0, {"messages": []})]
    with OpenLoop() as callers:
        refused, _ = callers.run(port, arrivals, patience_s=5)
        gone = callers.run(port, arrivals[1:], patience_s=0.03)[0]

    assert (refused.status, refused.answered, refused.ttft_s) == (503, False, None)
    assert refused.end_s is not None
    assert not gone.answered


def test_arrivals_have_their_rate_and_repeat_with_their_seed() -> None:
    moments = list(poisson(50, 100, seed=1))

    assert len(moments) == pytest.approx(5000, rel=0.05)
    assert moments == sorted(moments) == list(poisson(50, 100, seed=1))
    assert moments != list(poisson(50, 100, seed=2))
    assert moments[-1] < 100


def test_the_objective_follows_from_how_long_a_full_engine_takes() -> None:
    assert Full(per_s=1, answer_s=5).objective() == Objective(2, 10)
    assert Full(per_s=1, answer_s=2.5).objective() == Objective(1, 5)
