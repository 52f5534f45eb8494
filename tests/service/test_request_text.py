"""What requests say is kept for the log as far as it is logged, and reaches the routes whole."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.record import Record, set_record
from service.redaction import LONGEST, Secrets
from service.request_text import TextKeeper


def sent(content: Any, kind: str = "application/json") -> tuple[Record, bytes]:
    """A request through the keeper: its record, and what its route read."""
    record, read = Record("r1", "/v1/generate"), bytearray()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            read.extend(message["body"])
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        set_record(record)
        await TextKeeper(route)(scope, receive, send)

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            await client.post("/v1/generate", content=content, headers={"content-type": kind})

    asyncio.run(ask())
    return record, bytes(read)


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_body_in_pieces_is_kept_whole(kind: str) -> None:
    record, read = sent(_pieces(b'{"prompt": ', b'"a"}'), kind)

    assert record.body == read == b'{"prompt": "a"}'


def test_no_more_is_kept_than_is_logged() -> None:
    piece = b"x" * (LONGEST // 2 + 1)
    record, read = sent(_pieces(piece, piece, piece, piece))

    assert read == 4 * piece
    assert record.body is not None
    assert len(record.body) == LONGEST + 1
    assert Secrets().of_request(bytes(record.body)) == f"[over {LONGEST} bytes]"


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", ""])
def test_what_is_no_json_is_not_kept(kind: str) -> None:
    record, read = sent(json.dumps({"a": 1}).encode(), kind)

    assert record.body is None
    assert read == b'{"a": 1}'
