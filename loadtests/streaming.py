"""One request over HTTP and its times: to the first token, between tokens, to the whole answer.

Built on geventhttpclient, the client under Locust's FastHttpUser. Its `read(n)` and Locust's own
`iter_lines` wait for a full block of n bytes before they return anything, which turns a stream of
short events into a few late ones; lines are therefore read as they come. This module doesn't
import locust, which patches sockets on import.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gevent  # type: ignore[import-untyped]
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPSocketPoolResponse

from loadtests.workload import Call

DONE = "[DONE]"


@dataclass(frozen=True)
class Answer:
    """What came back, and when. Times are in milliseconds from the planned arrival."""

    status: int
    """0 when no answer came."""
    end_to_end_ms: float
    ttft_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()
    """Between the pieces of text of a stream. A server may put several tokens into a piece."""
    output_tokens: int | None = None
    input_tokens: int | None = None
    model: str | None = None
    """What answered, as the server names it."""
    size: int = 0
    """Characters of text (stream) or bytes of body."""
    error: str | None = None


class AnswerError(ValueError):
    """An answer that is not what was asked for; the message has the reason."""


class StreamError(Exception):
    """A stream that carried an error, or that ended before its end."""


class Client:
    """Sends calls to one server; connections are kept and reused."""

    def __init__(self, host: str, *, api_key: str | None, connections: int, timeout_s: float):
        self._timeout_s = timeout_s
        # A compressed stream would hold back its events.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = HTTPClient.from_url(
            host,
            concurrency=connections,
            connection_timeout=min(timeout_s, 10.0),
            network_timeout=timeout_s,
            headers=headers,
        )

    def models(self) -> list[str]:
        """What the server lists, its first at the front. Raises OSError or AnswerError."""
        models = self.ask("GET", "/v1/models").get("data", [])
        if not models:
            raise AnswerError("GET /v1/models: the server lists no model")
        return [str(model["id"]) for model in models]

    def prompt_tokens(self, call: Call) -> int:
        """What the server counts of a request's prompt. Raises OSError or AnswerError."""
        tokens = self.ask("POST", call.path, call.payload).get("usage", {}).get("prompt_tokens")
        if not isinstance(tokens, int):
            raise AnswerError(f"POST {call.path}: the answer has no usage.prompt_tokens")
        return tokens

    def ask(
        self, method: str, path: str, payload: bytes = b"", content_type: str = "application/json"
    ) -> dict[str, Any]:
        """A request that is no part of the load. Raises OSError or AnswerError with the reason."""
        body = self.fetch(method, path, payload, content_type)
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise AnswerError(f"{method} {path}: the body is not JSON") from error
        if not isinstance(answer, dict):
            raise AnswerError(f"{method} {path}: the body is no JSON object")
        return answer

    def fetch(
        self, method: str, path: str, payload: bytes = b"", content_type: str = "application/json"
    ) -> bytes:
        """The body of an answer with status 200. Raises OSError or AnswerError."""
        response: HTTPSocketPoolResponse | None = None
        try:
            with gevent.Timeout(self._timeout_s, TimeoutError(f"{method} {path}: no answer")):
                headers = {"Content-Type": content_type}
                response = self._http.request(method, path, payload, headers)
                body = bytes(response.read())
        except HTTPParseError as error:
            raise OSError(str(error)) from error
        finally:
            if response is not None:
                response.release()
        if response.status_code != 200:
            raise AnswerError(f"{method} {path}: {_http_error(response.status_code, body)}")
        return body

    def send(self, call: Call, arrived: float) -> Answer:
        """Send and read to the end. Never raises for what the server or the network does.

        arrived: the planned moment of arrival, as time.perf_counter() counts.
        """
        reading = Reading(arrived)
        response: HTTPSocketPoolResponse | None = None
        try:
            with gevent.Timeout(self._timeout_s):
                response = self._http.post(call.path, call.payload)
                if call.streamed and response.status_code == 200:
                    reading.stream(_lines(response))
                else:
                    reading.whole(response.status_code, bytes(response.read()))
        except gevent.Timeout:
            reading.error = f"no whole answer within {self._timeout_s:g} s"
        except (OSError, HTTPParseError, StreamError) as error:
            reading.error = f"{type(error).__name__}: {error}"
        finally:
            if response is not None:
                response.release()
        return reading.answer(0 if response is None else response.status_code)


class Reading:
    """The times of one answer while it comes in."""

    def __init__(self, arrived: float) -> None:
        self._arrived = arrived
        self._pieces: list[float] = []
        self._usage: dict[str, Any] = {}
        self._model: str | None = None
        self._size = 0
        self.error: str | None = None

    def whole(self, status: int, body: bytes) -> None:
        """Take an answer that came in one piece."""
        self._size = len(body)
        if status != 200:
            self.error = _http_error(status, body)
            return
        try:
            self._note(json.loads(body))
        except ValueError:
            self.error = "the body is not JSON"

    def stream(self, lines: Iterable[bytes]) -> None:
        """Take a stream of events. Raises StreamError."""
        for data in sse_data(lines):
            if data == DONE:
                return
            try:
                event = json.loads(data)
            except ValueError as error:
                raise StreamError(f"an event is not JSON: {data[:80]}") from error
            if "error" in event:
                raise StreamError(f"error in the stream: {_error_text(event)}")
            text = piece_of_text(event)
            if text:
                self._pieces.append(time.perf_counter())
                self._size += len(text)
            self._note(event)
        raise StreamError(f"the stream ended without {DONE}")

    def _note(self, body: Any) -> None:
        """What an answer or event tells beside its text."""
        if not isinstance(body, dict):
            return
        told = body.get("result") or body
        self._usage = told.get("usage") or self._usage
        self._model = told.get("model") or body.get("model") or self._model

    def answer(self, status: int) -> Answer:
        end = time.perf_counter()
        pieces = self._pieces
        return Answer(
            status=status,
            end_to_end_ms=(end - self._arrived) * 1000,
            ttft_ms=(pieces[0] - self._arrived) * 1000 if pieces else None,
            gaps_ms=tuple((later - earlier) * 1000 for earlier, later in pairwise(pieces)),
            output_tokens=self._usage.get("completion_tokens"),
            input_tokens=self._usage.get("prompt_tokens"),
            model=self._model,
            size=self._size,
            error=self.error,
        )


def _lines(response: HTTPSocketPoolResponse) -> Iterator[bytes]:
    """Lines as they come, without their end; stops at the end of the body."""
    while line := response.readline(b"\n"):
        yield line.rstrip(b"\r\n")


def sse_data(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event. Comments (keep-alives) and other fields are skipped."""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" ").decode("utf-8", errors="replace"))


def piece_of_text(event: dict[str, Any]) -> str:
    """The text that an event adds: OpenAI's chat and completion chunks, and our task streams."""
    if isinstance(event.get("delta"), str):
        return str(event["delta"])
    choices = event.get("choices")
    if not choices:
        return ""
    choice = choices[0]
    text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
    return "" if text is None else str(text)


def _http_error(status: int, body: bytes) -> str:
    try:
        return f"HTTP {status}: {_error_text(json.loads(body))}"
    except ValueError:
        return f"HTTP {status}"


def _error_text(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return f"{error.get('code')}: {error.get('message')}"
    return str(error)[:80]
