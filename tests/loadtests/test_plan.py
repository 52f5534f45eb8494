"""Who arrives when."""

from pathlib import Path

import pytest

from loadtests.plan import arrivals, arrivals_planned, length_s
from tests.loadtests.made import scenario, trace


def test_kinds_follow_the_mix() -> None:
    made = scenario(
        mix={"chat": 3, "classify": 1, "answer": 0},
        arrivals=[{"rate_per_s": 100, "duration_s": 10}],
    )

    drawn = [arrival.kind for arrival in arrivals(made)]

    assert 0.65 < drawn.count("chat") / len(drawn) < 0.85
    assert drawn.count("answer") == 0


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_share_the_plan_out_without_gap_or_repetition(workers: int) -> None:
    made = scenario(arrivals=[{"rate_per_s": 50, "duration_s": 3}], mix={"chat": 1, "answer": 1})

    shares = [list(arrivals(made, worker, workers)) for worker in range(workers)]

    together = sorted((one for share in shares for one in share), key=lambda one: one.number)
    assert together == list(arrivals(made))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_trace_is_a_plan(tmp_path: Path) -> None:
    made = scenario(replay={"file": trace(tmp_path), "format": "mooncake", "speed": 2})

    plan = list(arrivals(made))

    assert [one.at_s for one in plan] == [0, 0.75, 1]
    assert [one.recorded.output_tokens for one in plan if one.recorded] == [50, 9000, 20]
    assert arrivals_planned(made) == 3
    assert length_s(made) == 1


def test_only_an_open_loop_knows_how_many_will_come() -> None:
    assert arrivals_planned(scenario(users=1, duration_s=1)) is None
    assert arrivals_planned(scenario()) == len(list(arrivals(scenario())))
