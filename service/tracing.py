"""Traces: what a request did, as spans of OpenTelemetry, sent by OTLP over HTTP.

Spans are made once the request has ended, from the times in its record: nothing of this is on its
way, and nothing is done at all where `otlp_endpoint` is not set. Attributes follow OpenTelemetry's
conventions for HTTP servers and for generative AI.
"""

from collections.abc import Callable
from importlib.metadata import version as installed
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from service.record import PRIORITY_INTERACTIVE, Record
from service.scopes import PUBLIC

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

OPERATIONS = {
    "/v1/chat/completions": "chat", "/v1/responses": "chat",
    "/v1/completions": "text_completion", "/v1/generate": "text_completion",
    "/v1/translate": "translate", "/v1/answer": "answer", "/v1/classify": "classify",
}  # fmt: skip
"""`gen_ai.operation.name` by route; the conventions have no name for the last three."""
TRACES_PATH = "/v1/traces"
EXPORT_S = 5.0
"""For one export, and so the longest that a collector that is away holds up the end."""
MOST_PASSES = 32
"""Sequences of one request that have spans of their own."""
_LONGEST_NAME = 200

Attributes = dict[str, Any]


def otlp_exporter(endpoint: str) -> "SpanExporter":
    """To a collector; its headers come from OTEL_EXPORTER_OTLP_HEADERS."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    address = endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
    return OTLPSpanExporter(endpoint=address, timeout=EXPORT_S)


class Tracing:
    """Makes the spans of finished requests.

    Args:
        ratio: of requests that are traced where the caller does not say.
        server: names this process in the traces.
    """

    def __init__(self, exporter: "SpanExporter", ratio: float, server: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {
                "service.name": "modiste",
                "service.version": installed("modiste"),
                "service.instance.id": server,
            }
        )
        # not the global one: that is vLLM's, where it traces too
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("modiste", installed("modiste"))
        self._read_parent = TraceContextTextMapPropagator().extract

    def close(self) -> None:
        """Send what is left; also done when the process ends."""
        self._provider.shutdown()

    def observe(self, record: Record) -> None:
        """Make the spans of a finished request, and tell the record its trace."""
        if record.route in PUBLIC:
            return
        from opentelemetry.trace import SpanKind

        spans = _Spans(self._tracer.start_span, time_ns() - int(perf_counter() * 1e9))
        ended = perf_counter()
        parent = self._read_parent(
            {"traceparent": record.traceparent, "tracestate": record.tracestate}
        )
        root, inside = spans.begin(
            f"{record.method} {record.route}", record.started, parent, kind=SpanKind.SERVER
        )
        record.trace_id = f"{root.get_span_context().trace_id:032x}"
        if not root.is_recording():
            return
        root.set_attributes(_of_http(record))
        _judge(root, record)
        if record.task or record.asked:  # also where no model was found
            _model_spans(spans, record, inside, ended)
        else:
            for step in record.steps:
                spans.add(step.name, step.started, step.ended, inside)
        spans.end(root, ended)


class _Spans:
    """Makes spans from times of `perf_counter`.

    Args:
        start: the tracer's own.
        offset: nanoseconds from such a time to one since 1970.
    """

    def __init__(self, start: Callable[..., "Span"], offset: int) -> None:
        self._start, self._offset = start, offset

    def begin(
        self, name: str, started: float, parent: "Context", **more: Any
    ) -> "tuple[Span, Context]":
        """A span, and the context for those inside of it."""
        from opentelemetry.trace import set_span_in_context

        span = self._start(name, context=parent, start_time=self._at(started), **more)
        return span, set_span_in_context(span, parent)

    def end(self, span: "Span", at: float) -> None:
        span.end(end_time=self._at(at))

    def add(
        self,
        name: str,
        started: float,
        ended: float,
        parent: "Context",
        attributes: Attributes | None = None,
    ) -> "Context":
        """A whole span; returns the context for those inside of it."""
        span, inside = self.begin(name, started, parent, attributes=attributes)
        self.end(span, ended)
        return inside

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._offset


def _model_spans(spans: _Spans, record: Record, parent: "Context", ended: float) -> None:
    """What a model did: found and maybe loaded, then so many sequences in the engine."""
    before = [step for step in record.steps if step.outside]
    for step in before:
        spans.add(step.name, step.started, step.ended, parent)
    began = max((step.ended for step in before), default=record.started)
    operation = OPERATIONS.get(record.route, record.task)
    name = f"{operation} {record.asked[:_LONGEST_NAME]}".strip()
    span, inside = spans.begin(name, began, parent, attributes=_of_model(record, operation))
    _judge(span, record)
    for step in record.steps:
        if not step.outside:
            spans.add(step.name, step.started, step.ended, inside)
    for one in record.passes[:MOST_PASSES]:
        known = {"modiste.tokens": one.tokens}
        engine = spans.add("engine", one.started, one.ended, inside, known)
        at = one.started
        for part, lasted in (
            ("queue", one.queued_s), ("prefill", one.prefill_s), ("decode", one.decode_s),
        ):  # fmt: skip
            end = min(at + lasted, one.ended)
            spans.add(part, at, end, engine)
            at = end
    spans.end(span, ended)


def _of_http(record: Record) -> Attributes:
    return {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "modiste.request_id": record.request_id,
        "modiste.project": record.project,
        "modiste.caller": record.caller,
        "modiste.batch": record.priority != PRIORITY_INTERACTIVE,
    }


def _of_model(record: Record, operation: str) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "modiste",
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
    }
    if record.asked:
        found["gen_ai.request.model"] = record.asked[:_LONGEST_NAME]
    if record.model is not None:
        found["gen_ai.response.model"] = record.model.reference
        found["modiste.version.digest"] = record.model.digest
    if record.finish_reasons:
        found["gen_ai.response.finish_reasons"] = record.finish_reasons[:MOST_PASSES]
    if record.first_token is not None:
        found["gen_ai.response.time_to_first_chunk"] = record.first_token - record.started
    return found


def _judge(span: "Span", record: Record) -> None:
    """Failures of the server are errors; what a caller did wrong is its code alone."""
    from opentelemetry.trace import StatusCode

    if record.error_code is not None:
        span.set_attribute("error.type", record.error_code)
    if record.status >= 500 or record.failed:
        span.set_status(StatusCode.ERROR)
