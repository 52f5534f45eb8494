"""What a finished request adds to the metrics, and what is taken away again."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.metering import Pass
from service.models import Resolved
from service.record import PRIORITY_BATCH, Record
from service.series import KEPT_S, Series
from service.telemetry import Metrics

ROUTE = "/v1/generate"


def finished(name: str = "one", number: int = 1, **more: Any) -> Record:
    version: Any = SimpleNamespace(name=name, number=number)
    record = Record("id", ROUTE, task="generate", status=200, **more)
    record.model = Resolved(f"{name}@{number}", "sha256:ab", "proved", version)
    record.prompt_tokens, record.cached_tokens, record.completion_tokens = 10, 4, 3
    record.first_token = record.started + 0.2
    record.passes = [Pass(record.started, record.started + 1, 0.1, 0.1, 0.8, 3)]
    return record


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    labels = {"route": ROUTE, "task": "generate", "adapter": "one", "version": "1"} | labels
    return metrics.registry.get_sample_value(name, labels)


def test_a_request_is_counted_by_route_task_adapter_and_version() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe(finished())

    assert value(metrics, "modiste_requests_total", status="200") == 1
    assert value(metrics, "modiste_tokens_total", direction="in") == 10
    assert value(metrics, "modiste_tokens_total", direction="out") == 3
    assert value(metrics, "modiste_cached_tokens_total") == 4
    assert value(metrics, "modiste_time_to_first_token_seconds_sum") == pytest.approx(0.2)
    assert value(metrics, "modiste_time_between_tokens_seconds_sum") == pytest.approx(0.4)
    assert value(metrics, "modiste_request_seconds_count") == 1


def test_a_batchs_line_has_no_times() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe(finished(priority=PRIORITY_BATCH))

    assert value(metrics, "modiste_requests_total", status="200") == 1
    assert value(metrics, "modiste_request_seconds_count") is None
    assert value(metrics, "modiste_time_between_tokens_seconds_count") is None


def test_many_versions_make_few_series() -> None:
    few, many = Metrics(CollectorRegistry(), versions=3), Metrics(CollectorRegistry(), versions=3)
    for number in range(4):
        few.observe(finished(number=number))
    for number in range(500):
        many.observe(finished(number=number))

    other = {"adapter": "other", "version": "other", "status": "200"}
    assert value(many, "modiste_requests_total", **other) == 497
    lines = [generate_latest(one.registry).count(b"\n") for one in (few, many)]
    assert lines[0] == lines[1]


def test_nothing_is_left_of_a_version_that_went_away() -> None:
    clock = [0.0]
    metrics = Metrics(CollectorRegistry())
    metrics.series = Series(9, lambda: clock[0])
    metrics.observe(finished("kept"))
    before = generate_latest(metrics.registry)
    metrics.observe(finished("gone"))
    assert b'adapter="gone"' in generate_latest(metrics.registry)
    clock[0] = KEPT_S + 1
    metrics.sweep({("kept", "1")})

    left = [
        line for line in generate_latest(metrics.registry).split(b"\n") if b"_created" not in line
    ]
    assert left == [line for line in before.split(b"\n") if b"_created" not in line]


def test_a_version_that_comes_back_is_counted_anew() -> None:
    clock = [0.0]
    metrics = Metrics(CollectorRegistry())
    metrics.series = Series(9, lambda: clock[0])
    for _ in range(3):
        metrics.observe(finished())
    clock[0] = KEPT_S + 1
    metrics.sweep(set())
    assert value(metrics, "modiste_requests_total", status="200") is None

    metrics.observe(finished())
    assert value(metrics, "modiste_requests_total", status="200") == 1
    assert value(metrics, "modiste_request_seconds_count") == 1
