"""The figures of a run, in words and as JSON."""

import json

import pytest

from loadtests.sampling import Sample
from loadtests.tables import as_json, figures, summary
from tests.loadtests.made import outcome, result, scenario


def test_the_summary_names_failures_and_a_late_generator() -> None:
    late = outcome(kind="chat", late_ms=400.0, error="HTTP 429: overloaded: try later")

    text = summary(result(scenario(), [late]))

    assert "FAILS: share of failed requests" in text
    assert "failed 1 times: chat: HTTP 429: overloaded: try later" in text
    assert "FAILS: share of requests sent over 50 ms late: 1" in text
    assert "give it more processes" in text


def test_figures_are_rates_and_percentiles_after_the_warmup() -> None:
    outcomes = [
        outcome(arrived_s=1, end=9e9),
        outcome(ttft_ms=10.0, output_tokens=40, input_tokens=8, end=50.0),
        outcome(error="x"),
    ]
    samples = [Sample(0.0, {"cpu_s": 1.0}), Sample(4.0, {"cpu_s": 3.0})]

    found = figures(result(scenario(warmup_s=2), outcomes, samples))

    assert found["offered_per_s"] == pytest.approx(2 / 8)
    assert found["requests_per_s"] == pytest.approx(1 / 8)
    assert found["output_tokens_per_s"] == pytest.approx(40 / 8)
    assert found["input_tokens_per_s"] == pytest.approx(1)
    assert found["error_ratio"] == 0.5
    assert found["end_to_end_p99_ms"] == 50
    assert found["api_cpu_cores"] == 0.5
    assert found["token_gap_p50_ms"] is None


def test_a_run_without_answers_still_is_json() -> None:
    run = as_json(result(scenario(), []))

    assert json.loads(json.dumps(run, allow_nan=False))["holds"] is False


def test_the_server_and_what_went_on_beside_are_told() -> None:
    samples = [
        Sample(0.0, {"queue_s": 0.0, "queue_requests": 0.0}),
        Sample(1.0, {"queue_s": 1.0, "queue_requests": 4.0}),
    ]

    text = summary(result(scenario(), [outcome(kind="batch", end=1500.0)], samples))

    assert "mean queue time 250 ms" in text
    assert "1 × batch, the longest took 1.50 s" in text
