"""Requests that the server asks itself, for a caller who is not there.

They pass the same edge, routes and limits as any other, so that an answer in a batch is the one
that a request would get; only the key is not asked for, since the record names the caller.
"""

import asyncio
import logging
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from service.record import RECORD, Record

logger = logging.getLogger("modiste.inside")

GONE_S = 5.0
"""Longest wait for a route to end whose caller has gone away."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came, whole."""

    status: int
    headers: dict[str, str]
    body: bytes


async def ask(app: ASGIApp, path: str, body: bytes, record: Record) -> Answer:
    """POST a JSON body. Cancelling it frees what the request holds in the engine."""
    status, headers, pieces = 500, {}, bytearray()
    sent, gone = False, asyncio.Event()

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in message.get("headers", ())
            }
        elif message["type"] == "http.response.body":
            pieces.extend(message.get("body", b""))

    async def call() -> None:
        with suppress(Exception):  # raised again once it was answered and logged
            await app(_scope(path, body, record), receive, send)

    task = asyncio.create_task(call())  # a task of its own: the record lives in its context
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        # what is asked again, or never answered, is nobody's usage
        record.model, record.again = None, True
        # a route that is cancelled leaves its handler at work in the engine; one whose caller
        # goes away ends it
        gone.set()
        await _end(task, path)
        raise
    return Answer(status, headers, bytes(pieces))


async def _end(task: "asyncio.Task[None]", path: str) -> None:
    await asyncio.wait({task}, timeout=GONE_S)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=GONE_S)
        if not task.done():
            logger.error("a line's %s did not end", path)


def _scope(path: str, body: bytes, record: Record) -> MutableMapping[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": path, "raw_path": path.encode(),
        "root_path": "", "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": None, "server": None, "state": {}, RECORD: record,
    }  # fmt: skip
