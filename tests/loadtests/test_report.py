"""Judging a load."""

from pathlib import Path
from typing import Any

import pytest

from loadtests.report import (
    Judgement,
    Outcome,
    judge,
    percentile,
    read_outcomes,
    summary,
    write_outcomes,
)
from loadtests.scenario import Scenario
from loadtests.streaming import Answer


def scenario(warmup_s: float = 0, **slo: float) -> Scenario:
    return Scenario.model_validate(
        {
            "description": "",
            "arrivals": [{"rate_per_s": 1, "duration_s": 10}],
            "warmup_s": warmup_s,
            "mix": {"chat_stream": 1},
            "slo": slo,
        }
    )


def outcome(arrived_s: float = 5, error: str | None = None, **times: Any) -> Outcome:
    return Outcome(
        "chat_stream", arrived_s, 0.0, Answer(200, times.pop("end", 100.0), error=error, **times)
    )


def verdicts(judgements: list[Judgement]) -> dict[str, bool]:
    return {judgement.limit: judgement.holds for judgement in judgements}


def test_a_limit_holds_up_to_its_bound_and_fails_above() -> None:
    outcomes = [outcome(ttft_ms=float(time)) for time in range(1, 101)]

    assert verdicts(judge(scenario(ttft_p95_ms=95), outcomes))["time to first token, p95"]
    assert not verdicts(judge(scenario(ttft_p95_ms=94), outcomes))["time to first token, p95"]


def test_failed_requests_count_as_failed_and_not_as_fast() -> None:
    outcomes = [outcome(end=1.0, error="HTTP 429"), outcome(end=900.0)]

    judgements = judge(scenario(error_ratio=0.4, end_to_end_p50_ms=800), outcomes)

    assert [judgement.holds for judgement in judgements] == [False, False]
    assert judgements[0].value == 0.5


def test_nothing_measured_never_holds() -> None:
    assert not any(judgement.holds for judgement in judge(scenario(ttft_p50_ms=1e9), []))
    unstreamed = judge(scenario(ttft_p50_ms=1e9), [outcome()])
    assert not verdicts(unstreamed)["time to first token, p50"]


def test_warmup_is_not_judged() -> None:
    outcomes = [outcome(arrived_s=1, error="HTTP 500"), outcome(arrived_s=3)]

    assert judge(scenario(warmup_s=2), outcomes)[0].value == 0


def test_the_rate_counts_good_answers_only() -> None:
    outcomes = [outcome() for _ in range(10)] + [outcome(error="x")] * 10

    judgements = judge(scenario(error_ratio=1, requests_per_s=1.1), outcomes)

    assert judgements[1].value == pytest.approx(1.0)
    assert not judgements[1].holds


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([1, 2], 50) == 1
    assert percentile([1, 2], 99) == 2
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_outcomes_survive_their_file(tmp_path: Path) -> None:
    outcomes = [outcome(ttft_ms=1.5, gaps_ms=(1.0, 2.0)), outcome(error="x")]

    write_outcomes(tmp_path / "deep" / "o.jsonl", outcomes)

    assert read_outcomes(tmp_path / "deep" / "o.jsonl") == outcomes


def test_the_summary_names_failures_and_a_late_generator() -> None:
    late = Outcome("chat", 1.0, 400.0, Answer(0, 1.0, error="HTTP 429: overloaded"))
    text = summary(scenario(), [late], judge(scenario(), [late]))

    assert "FAILS: share of failed requests" in text
    assert "HTTP 429: overloaded" in text
    assert "generator was 400 ms late" in text
