"""HTTP/1.1 on a socket: uvicorn's own protocol, with an end to what a sender may do to it.

uvicorn leaves the size of a head unbounded with httptools, which vLLM's flags for h11 don't reach,
and waits for ever for one that never ends. What is refused here has no caller and no route yet,
so it passes no middleware: it has the API's shape, and is logged.
"""

import json
import logging
from asyncio import TimerHandle
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.settings import Settings

logger = logging.getLogger("modiste.protocol")

CODES = {
    400: ("invalid_http", "send it with a client for HTTP/1.1"),
    408: ("request_timeout", "send it at once, or raise header_wait_s"),
    414: ("url_too_long", "shorten it, or raise max_url_bytes"),
    431: ("headers_too_large", "send fewer, or raise max_header_bytes"),
}
"""By status: the error's code, and its hint."""

MAX_HEADERS = 128
LINGER_S = 5.0
"""For a body that still comes after its answer was sent."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Of what comes before a body, in bytes and seconds."""

    url_bytes: int
    header_bytes: int
    wait_s: float


def protocol(settings: Settings) -> Any:
    """What uvicorn calls for each connection."""
    limits = HeadLimits(settings.max_url_bytes, settings.max_header_bytes, settings.header_wait_s)
    return partial(BoundedProtocol, limits)


class _Refused(Exception):
    """Raised within the parser's callbacks, which end it."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose heads are bounded in size and time."""

    def __init__(self, limits: HeadLimits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._timer: TimerHandle | None = None
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
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
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
        self._in_head = False
        self._calls += 1
        super().on_headers_complete()
        if self.cycle is not None and not self.cycle.response_complete:
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
        self._unanswered = [one for one in self._unanswered if not one.response_complete]
        super().on_response_complete()
        if not self._in_head and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(LINGER_S, self.transport.close)

    # refusals

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self._limits.wait_s, self._head_is_late)

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
        error = {
            "message": message, "type": "invalid_request_error", "param": None, "code": code,
            "hint": hint,
        }  # fmt: skip
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
