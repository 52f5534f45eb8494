"""HTTP/1.1 on a socket: uvicorn's own protocol, with an end to what a sender may do to it.

uvicorn leaves the size of a head unbounded with httptools, which vLLM's flags for h11 don't reach,
and waits for ever for one that never ends, as for a reader who takes nothing; its bound on
connections would refuse probes too. What is refused here has no caller and no route yet, so it
passes no middleware: it has the API's shape, is logged and counted.
"""

import json
import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.scopes import PUBLIC
from service.settings import Settings

logger = logging.getLogger("modiste.protocol")

CODES = {
    400: ("invalid_http", "send it with a client for HTTP/1.1"),
    408: ("request_timeout", "send it at once, or raise header_wait_s"),
    414: ("url_too_long", "shorten it, or raise max_url_bytes"),
    431: ("headers_too_large", "send fewer, or raise max_header_bytes"),
    503: ("too_many_connections", "try again, keep connections open for more requests, or raise "
          "max_connections"),
}  # fmt: skip
"""By status: the error's code, and its hint."""
UNREAD = "answer_not_read"
"""The code of what has no status: the connection is cut."""

MAX_HEADERS = 128
LINGER_S = 5.0
"""For a body that still comes after its answer was sent."""


_HEAD, _LAST = b"HTTP/1.", b"data: [DONE]\n\n\r\n"

SPARE, SPARE_S = 128, 2.0
"""Connections over the bound that may still ask for what probes ask for, within so many seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of heads, in bytes and seconds; of answers that wait for their reader; of connections."""

    url_bytes: int
    header_bytes: int
    wait_s: float
    answer_s: float
    connections: int


@dataclass(slots=True)
class Connections:
    """Those of one server process.

    Attributes:
        open: uvicorn's own set, once there was one.
        refused: called with the code of each that is refused or cut.
    """

    open: Collection[object] = ()
    refused: list[Callable[[str], None]] = field(default_factory=list)

    def tell(self, code: str) -> None:
        for one in self.refused:
            one(code)


def protocol(settings: Settings, connections: Connections) -> Any:
    """What uvicorn calls for each connection."""
    limits = Limits(
        settings.max_url_bytes, settings.max_header_bytes, settings.header_wait_s,
        settings.answer_wait_s, settings.max_connections,
    )  # fmt: skip
    return partial(BoundedProtocol, limits, connections)


class _Refused(Exception):
    """Raised within the parser's callbacks, which end it."""


class _Joining:
    """A transport for one answer: a head is written along with what follows it at once, the last
    event of a stream with its end. Each write is a system call, and wakes the reader."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: Any, loop: AbstractEventLoop) -> None:
        self._transport, self._loop, self._held = transport, loop, b""

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        elif data.startswith(_HEAD) or data.endswith(_LAST):
            self._held = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose heads are bounded in size and time, and whose answers in time."""

    def __init__(self, limits: Limits, connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits, self._all = limits, connections
        self._timer: TimerHandle | None = None
        self._reading: TimerHandle | None = None
        """Runs while an answer waits for its reader."""
        self._spare = False
        """It is one over the bound."""
        self._in_head = True
        """A head is awaited or has begun; else a body comes."""
        self._calls = 0
        self._kept = 0
        """Bytes that came since the parser last called: it keeps them."""
        self._refusal: tuple[int, str] | None = None
        self._unanswered: list[RequestResponseCycle] = []
        """uvicorn keeps the last one alone, and would write to a caller who has gone."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._all.open = self.connections
        over = len(self.connections) - self._limits.connections
        self._spare = over > 0
        if over > SPARE:
            self._note_too_many()
            self.send_400_response("")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reading()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        calls = self._calls
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._kept = 0 if self._calls != calls else self._kept + len(data)
        if self._kept > self._limits.url_bytes + self._limits.header_bytes:
            self._note(431, f"a header is over {self._limits.header_bytes} bytes")
            self.send_400_response("")
        elif self._in_head and self._kept and self._timer is None:
            self._await_head()  # of the next request on a connection that was kept

    # the parser's callbacks, in the order of a request

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        if not self.flow.write_paused:
            self._stop_reading()  # who asks again has read

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.url_bytes:
            self._note(414, f"the URL is over {self._limits.url_bytes} bytes")
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._calls += 1
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self._limits.header_bytes:
            self._note(431, f"the headers are over {self._limits.header_bytes} bytes")
            raise _Refused
        if len(self.headers) > MAX_HEADERS:
            self._note(431, f"there are over {MAX_HEADERS} headers")
            raise _Refused

    def on_headers_complete(self) -> None:
        self._stop_timer()
        if self._spare and self.url.partition(b"?")[0].decode("latin-1") not in PUBLIC:
            self._note_too_many()
            raise _Refused
        self._in_head = False
        self._calls += 1
        super().on_headers_complete()
        if self._spare and self.cycle is not None:
            self.cycle.keep_alive = False
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.transport = _Joining(self.cycle.transport, self.loop)  # type: ignore[assignment]
            self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._calls += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._calls += 1
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        for one in self._unanswered:
            if one.response_complete:
                cast("_Joining", one.transport).flush()  # of an answer without a body
        self._unanswered = [one for one in self._unanswered if not one.response_complete]
        if self.transport.get_write_buffer_size() and self._reading is None:
            self._await_reader()  # also where it is closing: it waits for what is unsent
        super().on_response_complete()
        if not self._in_head and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(LINGER_S, self.transport.close)

    # answers that nobody reads

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def _await_reader(self) -> None:
        self._reading = self.loop.call_later(self._limits.answer_s, self._is_unread)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _is_unread(self) -> None:
        self._reading = None
        if not self.transport.get_write_buffer_size():
            return
        logger.info(
            "cut a connection of %s: it read nothing of its answer for %g seconds; if it is slow, "
            "raise answer_wait_s", self.client, self._limits.answer_s,
        )  # fmt: skip
        self._all.tell(UNREAD)
        self.transport.abort()

    # refusals

    def _await_head(self) -> None:
        wait_s = min(self._limits.wait_s, SPARE_S) if self._spare else self._limits.wait_s
        self._timer = self.loop.call_later(wait_s, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.scope is None:
            self.transport.close()  # nobody has asked for anything
            return
        self._note(408, f"the head took over {self._limits.wait_s:g} seconds")
        self.send_400_response("")

    def _note(self, status: int, message: str) -> None:
        self._refusal = (status, message)

    def _note_too_many(self) -> None:
        self._note(503, f"{self._limits.connections} connections are open")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """As uvicorn's, in the API's shape; also for the other refusals of a head."""
        self._stop_timer()
        running = self.cycle is not None and not self.cycle.response_complete
        if running and (self._in_head or self.cycle.response_started):
            self.transport.close()  # it would be taken for another request's answer
            return
        status, message = self._refusal or (400, "the request is not valid HTTP/1.1")
        code, hint = CODES[status]
        logger.info("refused a connection of %s: %s", self.client, message)
        self._all.tell(code)
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": code, "hint": hint}
        body = json.dumps({"error": error}).encode()
        retry = "retry-after: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{retry}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
