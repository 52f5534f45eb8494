"""Spans of finished requests, as a real collector gets them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Proto

from adapters.errors import AdapterError
from bench.servers import free_port
from service import tracing as tracing_module
from service.metering import Pass
from service.models import Resolved
from service.record import PRIORITY_BATCH, Record, Step, set_record
from service.tracing import MOST_PASSES, Tracing, otlp_exporter
from tests.otlp import Collector, collecting
from tests.service.workbench import Bench, run

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextmanager
def traced(*records: Record, ratio: float = 1.0) -> Iterator[Collector]:
    """What a collector got of these requests."""
    with collecting() as collector:
        tracing = Tracing(otlp_exporter(collector.url), ratio, "server-1")
        for record in records:
            tracing.observe(record)
        tracing.close()
        yield collector


def chat(**more: Any) -> Record:
    """A request that loaded a version, and took two sequences, as its record is at its end."""
    record = Record("r1", "/v1/chat/completions", "ours", "key_1", "generate", **more)
    record.started -= 2.0
    at, record.status = record.started, record.status or 200
    record.asked, record.model = "one@production", Resolved("one@3", "sha256:ab", "proved")
    record.prompt_tokens, record.cached_tokens, record.completion_tokens = 10, 4, 6
    record.first_token, record.finish_reasons = at + 0.7, ["stop", "length"]
    record.steps = [
        Step("authenticate", at, at + 0.1, outside=True),
        Step("load version", at + 0.15, at + 0.4),
        Step("resolve model", at + 0.1, at + 0.5),
    ]
    record.passes = [
        Pass(at + 0.5, at + 1.9, 0.1, 0.1, 1.0, 3),
        Pass(at + 0.5, at + 1.5, 0, 0.2, 5, 3),
    ]
    return record


def test_a_request_is_one_tree_from_the_edge_to_the_engine() -> None:
    with traced(chat()) as collector:
        by_id = {span.id: span for span in collector.spans}
        tree = sorted(
            (span.name, by_id[span.parent].name if span.parent else "") for span in by_id.values()
        )

    root, model = "POST /v1/chat/completions", "chat one@production"
    assert tree == sorted(
        [(root, ""), ("authenticate", root), (model, root), ("resolve model", model)]
        + [("load version", model)]
        + 2 * [("engine", model), ("queue", "engine"), ("prefill", "engine"), ("decode", "engine")]
    )
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "modiste"
    assert collector.resource["service.instance.id"] == "server-1"


def test_every_span_lies_within_its_parent_and_now() -> None:
    with traced(chat()) as collector:
        by_id = {span.id: span for span in collector.spans}

    assert len({span.trace for span in by_id.values()}) == 1
    for span in by_id.values():
        assert span.started <= span.ended
        if span.parent:
            above = by_id[span.parent]
            assert above.started - 1000 <= span.started, span.name  # ns: floats round
            assert span.ended <= above.ended + 1000, span.name
        else:
            assert abs(span.ended - time.time_ns()) < 60e9
            assert span.ended - span.started == pytest.approx(2e9, rel=0.5)


def test_the_models_span_has_the_attributes_of_generative_ai() -> None:
    with traced(chat()) as collector:
        (span,) = collector.named("chat one@production")

    first = span.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert first == pytest.approx(0.7)
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "modiste",
        "gen_ai.request.model": "one@production",
        "gen_ai.response.model": "one@3",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "modiste.version.digest": "sha256:ab",
    }


def test_the_requests_span_says_who_asked_what() -> None:
    with traced(chat(priority=PRIORITY_BATCH)) as collector:
        (span,) = collector.named("POST /v1/chat/completions")

    assert span.kind == Proto.SPAN_KIND_SERVER
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "modiste.request_id": "r1",
        "modiste.project": "ours",
        "modiste.caller": "key_1",
        "modiste.batch": True,
    }


def test_the_callers_trace_goes_on() -> None:
    record = chat(traceparent=f"00-{TRACE}-{PARENT}-01")
    with traced(record) as collector:
        (root,) = collector.named("POST /v1/chat/completions")

    assert {span.trace for span in collector.spans} == {TRACE} == {record.trace_id}
    assert root.parent == PARENT


@pytest.mark.parametrize("broken", ["", "00-nonsense", f"00-{'0' * 32}-{PARENT}-01", "\xff" * 90])
def test_a_broken_trace_of_a_caller_is_passed_over(broken: str) -> None:
    record = chat(traceparent=broken)
    with traced(record) as collector:
        (root,) = collector.named("POST /v1/chat/completions")

    assert root.parent == ""
    assert root.trace == record.trace_id != "0" * 32


@pytest.mark.parametrize(
    ("ratio", "flag", "sent"), [(0.0, "01", True), (1.0, "00", False), (0.0, None, False)]
)
def test_the_caller_decides_before_the_ratio_does(
    ratio: float, flag: str | None, sent: bool
) -> None:
    parent = "" if flag is None else f"00-{TRACE}-{PARENT}-{flag}"
    with traced(chat(traceparent=parent), ratio=ratio) as collector:
        assert bool(collector.spans) is sent


def refused(status: int, code: str) -> Record:
    return Record("r2", "/v1/generate", status=status, error_code=code)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (refused(401, "missing_api_key"), False),
        (refused(503, "engine_dead"), True),
        (Record("r3", "/v1/generate", status=200, failed=True), True),
    ],
)
def test_only_what_is_the_servers_fault_is_an_error(record: Record, error: bool) -> None:
    with traced(record) as collector:
        (span,) = collector.spans

    assert span.error is error
    assert span.attributes.get("error.type") == record.error_code


def test_a_model_that_could_not_be_loaded_has_its_span() -> None:
    record = refused(503, "no_room_for_version")
    record.asked = "cold@1"
    with traced(record) as collector:
        (span,) = collector.named("text_completion cold@1")

    assert span.error
    assert span.attributes["error.type"] == "no_room_for_version"
    assert "gen_ai.response.model" not in span.attributes


@pytest.mark.parametrize("route", ["/health/ready", "/health/live", "/metrics"])
def test_probes_are_not_traced(route: str) -> None:
    with traced(Record("p", route, status=200)) as collector:
        assert collector.spans == []


def test_a_request_of_many_sequences_has_spans_for_some() -> None:
    record = chat()
    record.passes *= 500
    with traced(record) as collector:
        assert len(collector.named("engine")) == MOST_PASSES


def timed(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing_module, "EXPORT_S", 0.5)
    tracing = Tracing(otlp_exporter(f"http://127.0.0.1:{free_port()}"), 1.0, "server-1")

    assert timed(lambda: [tracing.observe(chat()) for _ in range(50)] and None) < 2
    assert timed(tracing.close) < 3


def test_the_endpoint_may_be_told_with_its_path() -> None:
    plain, whole = (otlp_exporter(f"http://h:4318{path}") for path in ("/", "/v1/traces"))

    assert plain._endpoint == whole._endpoint == "http://h:4318/v1/traces"  # type: ignore[attr-defined]


@pytest.mark.parametrize("honest", [True, False])
def test_a_record_has_the_load_of_a_cold_version_also_one_that_fails(
    tmp_path: Path, honest: bool
) -> None:
    bench, record = Bench(tmp_path), Record("r", "/v1/generate")
    bench.publish(1)
    if not honest:
        bench.engine.dishonest.add(bench.digest("x@1"))

    async def work() -> None:
        set_record(record)
        with nullcontext() if honest else pytest.raises(AdapterError):
            await bench.models.resolve("x@1", task="generate")

    run(work)
    load, resolve = record.steps
    assert (load.name, resolve.name) == ("load version", "resolve model")
    assert resolve.started <= load.started <= load.ended <= resolve.ended
    assert record.asked == "x@1"
    assert bool(record.task) is honest
