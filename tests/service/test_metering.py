"""The engine's own times reach the record; what has none is still counted."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.metrics.stats import RequestStateStats

from service.metering import Meter
from service.record import Record


def output(*ids: int, finished: bool, metrics: Any) -> Any:
    reason = "stop" if finished else None
    choice = SimpleNamespace(index=0, token_ids=list(ids), finish_reason=reason)
    return SimpleNamespace(
        prompt_token_ids=[1, 2], num_cached_tokens=0, finished=finished, outputs=[choice],
        metrics=metrics,
    )  # fmt: skip


def times(tokens: int) -> RequestStateStats:
    """As vLLM 0.32 fills it in."""
    return RequestStateStats(
        num_generation_tokens=tokens, arrival_time=1e9, queued_ts=100.0, scheduled_ts=100.5,
        first_token_ts=101.5, last_token_ts=103.5, first_token_latency=1.75,
    )  # fmt: skip


def test_an_answer_that_comes_whole_had_its_first_token_when_the_engine_says() -> None:
    record = Record("id", "/v1/generate")
    Meter(record, deltas=False, whole=True).count(output(5, 6, 7, finished=True, metrics=times(3)))

    (one,) = record.passes
    assert record.first_token is not None
    assert record.first_token - one.started == pytest.approx(1.75)
    assert (one.queued_s, one.prefill_s, one.decode_s) == (0.5, 1.0, 2.0)
    assert one.between_tokens_s == 1.0
    assert record.finish_reasons == ["stop"]


def test_a_streams_first_token_is_when_it_came() -> None:
    record = Record("id", "/v1/generate")
    meter = Meter(record, deltas=True, whole=False)
    meter.count(output(5, finished=False, metrics=times(1)))

    assert record.first_token is not None
    assert record.first_token - record.started < 1
    assert (record.passes, record.finish_reasons) == ([], [])


def test_one_token_has_no_time_between_tokens() -> None:
    record = Record("id", "/v1/generate")
    Meter(record, deltas=False, whole=True).count(output(5, finished=True, metrics=times(1)))

    assert record.passes[0].between_tokens_s is None


def test_without_the_engines_times_tokens_are_counted_all_the_same() -> None:
    record = Record("id", "/v1/generate")
    Meter(record, deltas=False, whole=True).count(output(5, 6, finished=True, metrics=None))

    assert (record.completion_tokens, record.answered, record.passes) == (2, True, [])
    assert record.first_token is not None
