"""The edge: what every request passes before a route sees it, as plain ASGI.

In this order: a caller, who may use the route; only routes of the table, a bounded body, the
caller's limits; then the record, whose end releases what the request held and counts it.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.audit import CALLER, Actor, act_as
from service.auth import Authenticator
from service.errors import (
    BadRequest,
    RouteNotFound,
    ServiceError,
    TooLarge,
    TooSlow,
    from_service,
    from_unexpected,
)
from service.event_stream import SEND
from service.limiting.limiter import Limiter
from service.record import RECORD, Record, set_record
from service.scopes import PUBLIC, check_route
from service.telemetry import Metrics

STRIPPED = frozenset({b"x-vllm-priority", b"x-data-parallel-rank", b"x-session-id"})
"""Headers by which a caller would steer the engine."""

SLOWEST = 16_384
"""Bytes a second; a slower sender holds a connection for too little."""

STICKY = b"x-modiste-sticky-key"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Table:
    """The reachable routes: path templates with their methods."""

    exact: dict[str, str]
    patterns: tuple[tuple[re.Pattern[str], str], ...]

    @classmethod
    def of(cls, templates: Iterable[str]) -> "Table":
        plain = {template: template for template in templates if "{" not in template}
        patterns = tuple(
            (re.compile(re.sub(r"\{[a-z_]+(:path)?\}", r"[^/\r\n]+", template)), template)
            for template in templates
            if "{" in template
        )
        return cls(plain, patterns)

    def match(self, path: str) -> str | None:
        """The template of a path, or None when it is not in the table."""
        found = self.exact.get(path)
        if found is not None:
            return found
        return next((t for pattern, t in self.patterns if pattern.fullmatch(path)), None)


@dataclass(frozen=True, slots=True)
class Bound:
    """How long a body may be, and the setting that says so."""

    most: int
    """Bytes."""
    setting: str

    def exceeded(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self.most} bytes", hint=f"send less, or raise {self.setting}"
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bound of every route: that of its template, else the common one."""

    common: Bound
    routes: dict[str, Bound]
    wait_s: float = 30.0
    """Longest wait for a body; one second more for each `SLOWEST` bytes that came."""

    def of(self, template: str) -> Bound:
        return self.routes.get(template, self.common)


class Edge:
    """The outermost middleware."""

    def __init__(  # noqa: PLR0913  # one for each concern
        self,
        app: ASGIApp,
        *,
        table: Table,
        authenticator: Authenticator,
        metrics: Metrics,
        bounds: Bounds,
        watchers: Sequence[Callable[[Record], None]] = (),
        limiter: Limiter | None = None,
    ) -> None:
        self._app, self._table, self._metrics, self._watchers = app, table, metrics, watchers
        self._authenticator, self._bounds, self._limiter = authenticator, bounds, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route of ours is a web socket
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = dict(scope["headers"])
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in STRIPPED]
        own: Record | None = scope.get(RECORD)
        record = own or Record(_request_id(headers), self._table.match(scope["path"]) or "unknown")
        _note(record, scope["method"], headers)
        set_record(record)
        in_flight = self._metrics.in_flight if own is None else self._metrics.batch_lines_in_flight
        in_flight.inc()
        answer, scope[SEND] = _Answer(record, send), send
        try:
            refusal = await self._refusal(record, scope, headers)
            record.step("authenticate", record.started, outside=True)
            if refusal is not None:
                await from_service(refusal)(scope, receive, answer)
                return
            bounded = _bounded(receive, self._bounds, record.route, answer)
            if self._limiter is not None and record.route not in PUBLIC:
                bounded = await self._limiter.admit(record, scope, bounded)
            await self._app(scope, bounded, answer)
        except ServiceError as error:  # while a middleware read the body, or of a limit
            if answer.started:
                raise
            await from_service(error)(scope, receive, answer)
        except Exception as error:  # of a route: here it still gets its request id, and is counted
            if answer.started:
                raise
            await from_unexpected(error)(scope, receive, answer)
        finally:
            in_flight.dec()
            record.finish()
            self._metrics.observe(record)
            for watch in self._watchers:
                watch(record)

    async def _refusal(
        self, record: Record, scope: Scope, headers: dict[bytes, bytes]
    ) -> ServiceError | None:
        path = scope["path"]
        try:
            if path not in PUBLIC and RECORD not in scope:
                authorization = _authorization(headers)
                await self._authenticator.prepare(authorization)
                caller = self._authenticator.caller(authorization)
                record.caller, record.project = caller.name, caller.project
                act_as(Actor(CALLER, caller.name, caller.project, record.request_id))
                record.scopes = caller.scopes
                check_route(caller.scopes, scope["method"], record.route)
        except ServiceError as error:
            return error
        if "\0" in path or b"%00" in scope["query_string"]:
            return BadRequest(
                "the URL has a NUL character", hint="leave it out", code="invalid_url"
            )
        if record.route == "unknown":
            return RouteNotFound(
                f"there is no {scope['method']} {path[:200]}", hint="see docs/api.md for the routes"
            )
        length = headers.get(b"content-length", b"0")
        bound = self._bounds.of(record.route)
        if length.isdigit() and int(length) > bound.most:
            return bound.exceeded()
        return None


class _Answer:
    """Adds our headers to an answer and notes its status."""

    def __init__(self, record: Record, send: Send) -> None:
        self._record, self._send = record, send
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._record.status = message["status"]
            headers = [*message.get("headers", ())]
            headers.append((b"x-request-id", self._record.request_id.encode()))
            headers += [(name.encode(), value.encode()) for name, value in self._record.headers]
            if self._record.model is not None and message["status"] < 400:
                headers.append((b"x-modiste-receipt", self._record.model.receipt.encode()))
            message = {**message, "headers": headers}
        await self._send(message)


def _note(record: Record, method: str, headers: dict[bytes, bytes]) -> None:
    """What a request says besides its path and its body."""
    record.method = method
    record.traceparent = headers.get(b"traceparent", b"").decode("latin-1")
    record.tracestate = headers.get(b"tracestate", b"").decode("latin-1")
    record.sticky_key = headers.get(STICKY, b"").decode("latin-1")


def _bounded(receive: Receive, bounds: Bounds, route: str, answer: _Answer) -> Receive:
    """`receive` that stops at too many bytes, for bodies that tell no length, and at a sender who
    takes too long. Only the time counts that the server waits for him."""
    bound, seen, waited, whole = bounds.of(route), 0, 0.0, False

    async def bounded() -> Message:
        nonlocal seen, waited, whole
        if whole or answer.started:  # what comes now is that the caller goes away
            return await receive()
        begun = perf_counter()
        try:
            async with asyncio.timeout(bounds.wait_s + seen / SLOWEST - waited):
                message = await receive()
        except TimeoutError:
            raise TooSlow(
                f"the body did not come in time: {seen} bytes in {waited:.0f} s and more",
                hint=f"send it faster than {SLOWEST} bytes/s, or raise body_wait_s",
            ) from None
        waited += perf_counter() - begun
        if message["type"] == "http.request":
            whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > bound.most:
                raise bound.exceeded()
        return message

    return bounded


def _authorization(headers: dict[bytes, bytes]) -> str | None:
    return headers.get(b"authorization", b"").decode("latin-1") or None


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's own id when it is harmless, so that logs of both sides meet."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex
