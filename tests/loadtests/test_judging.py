"""Judging a load."""

import pytest

from loadtests.judging import Judgement, judge
from loadtests.outcomes import Outcome
from loadtests.sampling import Sample
from tests.loadtests.made import outcome, scenario


def verdicts(judgements: list[Judgement]) -> dict[str, bool]:
    return {judgement.limit: judgement.holds for judgement in judgements}


def test_a_limit_holds_up_to_its_bound_and_fails_above() -> None:
    outcomes = [outcome(ttft_ms=float(time)) for time in range(1, 101)]

    held = judge(scenario(slo={"ttft_p95_ms": 95}), outcomes)
    broken = judge(scenario(slo={"ttft_p95_ms": 94}), outcomes)

    assert verdicts(held)["time to first token, p95"]
    assert not verdicts(broken)["time to first token, p95"]


def test_failed_requests_count_as_failed_and_not_as_fast() -> None:
    outcomes = [outcome(end=1.0, error="HTTP 429"), outcome(end=900.0)]

    judgements = judge(scenario(slo={"error_ratio": 0.4, "end_to_end_p50_ms": 800}), outcomes)

    assert [judgement.holds for judgement in judgements[:2]] == [False, False]
    assert judgements[0].value == 0.5


def test_nothing_measured_never_holds() -> None:
    limits = {"ttft_p50_ms": 1e9, "goodput_ratio": 0, "drift_ratio": 9, "cached_ratio": 0}

    assert not any(judgement.holds for judgement in judge(scenario(slo=limits), []))
    unstreamed = judge(scenario(slo={"ttft_p50_ms": 1e9}), [outcome()])
    assert not verdicts(unstreamed)["time to first token, p50"]


def test_warmup_is_not_judged() -> None:
    outcomes = [outcome(arrived_s=1, error="HTTP 500"), outcome(arrived_s=3)]

    assert judge(scenario(warmup_s=2), outcomes)[0].value == 0


def test_the_rate_counts_answers_only() -> None:
    outcomes = [outcome() for _ in range(10)] + [outcome(error="x")] * 10

    judgements = judge(scenario(slo={"error_ratio": 1, "requests_per_s": 1.1}), outcomes)

    assert judgements[1].value == pytest.approx(1.0)
    assert not judgements[1].holds


def test_goodput_asks_of_each_answer_what_the_scenario_asks() -> None:
    outcomes = [
        outcome(ttft_ms=90.0), outcome(ttft_ms=110.0), outcome(error="x", ttft_ms=1.0),
        outcome(ttft_ms=50.0, gaps_ms=(10.0, 50.0)),
    ]  # fmt: skip
    limits = {
        "error_ratio": 1, "good": {"ttft_ms": 100, "token_gap_ms": 20},
        "goodput_ratio": 0.5, "goodput_per_s": 0.1,
    }  # fmt: skip

    found = {one.limit: one for one in judge(scenario(slo=limits), outcomes)}

    assert found["share of requests with good answers"].value == 0.25
    assert not found["share of requests with good answers"].holds
    assert found["good answers per second"].value == pytest.approx(0.1)
    assert found["good answers per second"].holds


def test_a_generator_that_is_late_fails_the_run_and_says_what_to_do() -> None:
    outcomes = [outcome(late_ms=60.0)] * 2 + [outcome(late_ms=1.0)] * 98

    strict = judge(scenario(), outcomes)[-1]
    loose = judge(scenario(schedule={"late_ms": 100}), outcomes)[-1]

    assert (strict.value, strict.holds) == (0.02, False)
    assert "--workers" in strict.advice
    assert loose.holds
    assert not loose.advice


def test_a_closed_loop_has_no_schedule() -> None:
    closed = scenario(users=1, duration_s=10)

    assert len(judge(closed, [outcome(late_ms=900.0)], None)) == 1


def test_outcomes_of_a_lost_worker_are_missed() -> None:
    found = judge(scenario(), [outcome()] * 9, planned=10)[-1]

    assert (found.value, found.holds) == (1.0, False)
    assert "worker" in found.advice


def test_drift_compares_the_last_quarter_of_the_time_with_the_first() -> None:
    early = [outcome(arrived_s=1, end=100.0)] * 3
    peak = [outcome(arrived_s=5, end=900.0)] * 90
    late = [outcome(arrived_s=9, end=130.0)] * 3

    found = judge(scenario(slo={"drift_ratio": 1.25}), early + peak + late)[1]

    assert found.value == pytest.approx(1.3)
    assert not found.holds


def test_prefix_cache_hits_are_the_servers_own() -> None:
    samples = [
        Sample(0.5, {"prefix_hits": 0.0, "prefix_queries": 100.0}),
        Sample(3.0, {"prefix_hits": 10.0, "prefix_queries": 200.0}),
        Sample(9.0, {"prefix_hits": 100.0, "prefix_queries": 300.0}),
    ]
    made = scenario(warmup_s=2, slo={"cached_ratio": 0.8})

    found = verdicts(judge(made, [outcome()], None, samples))

    assert found["share of prompt tokens from the prefix cache"]


def test_what_fails_beside_the_requests_fails_the_run_and_is_no_request() -> None:
    outcomes = [outcome(), outcome(kind="batch", error="batch failed"), outcome(kind="promotion")]

    judgements = judge(scenario(slo={"error_ratio": 0}), outcomes)

    assert judgements[0].value == 0
    assert not verdicts(judgements)["failed of 1 × batch beside"]
    assert verdicts(judgements)["failed of 1 × promotion beside"]


def promoted(at_s: float, model: str, error: str | None = None) -> Outcome:
    return outcome(at_s, error, kind="promotion", end=1000.0, model=model)


def test_between_promotions_the_version_that_is_live_answers() -> None:
    made = scenario(
        models=["menus"], beside={"promotions": {"adapter": "menus", "versions": [1, 2]}}
    )
    moves = [promoted(2, "menus@2"), promoted(6, "menus@1", error="x"), promoted(8, "menus@1")]
    right = [
        outcome(1, model="menus@1"), outcome(2.5, model="menus@1"), outcome(3.1, model="menus@1"),
        outcome(4, model="menus@2"), outcome(7.9, model="menus@1"), outcome(9.9, model="menus@1"),
    ]  # fmt: skip

    held = judge(made, moves + right)[-1]
    broken = judge(made, [*moves, *right, outcome(4.1, model="menus@1")])[-1]

    assert (held.limit, held.holds) == ("of 2 answers, by a version that was not live", True)
    assert (broken.value, broken.holds) == (1.0, False)
