"""Answers on real sockets: in how few pieces they go, and what becomes of those nobody reads."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service.settings import Settings
from tests.service.wire import HELLO, App, talk

PIECE = b"x" * 2**16
IMPATIENT = Settings(answer_wait_s=0.4)


class Flood(App):
    """Answers without end, or with so many pieces; `ended` once it can't any more."""

    def __init__(self, pieces: int | None = None, at_once: int = 1) -> None:
        super().__init__()
        self._pieces, self._piece = pieces, PIECE * at_once
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = self._pieces
        while left != 0 and not gone.done():
            await send({"type": "http.response.body", "body": self._piece, "more_body": True})
            await asyncio.sleep(0)
            left = None if left is None else left - 1
        if not gone.done():
            await send({"type": "http.response.body", "body": b""})
        gone.cancel()
        self.ended.set()


@pytest.mark.parametrize("at_once", [1, 200], ids=["stream", "whole"])
def test_an_answer_that_nobody_reads_is_cut_and_its_route_hears_of_it(at_once: int) -> None:
    app, refused = Flood(at_once=at_once), list[str]()

    async def work(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(HELLO)  # asyncio reads ahead 128 KiB, then no more
        begun = asyncio.get_running_loop().time()
        await app.ended.wait()
        return asyncio.get_running_loop().time() - begun

    assert 0.3 < talk(work, app, IMPATIENT, refused) < 3
    assert refused == ["answer_not_read"]


def test_what_is_left_of_an_answer_is_not_kept_for_who_reads_none_of_it() -> None:
    refused: list[str] = []

    class Whole(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"content-length", b"%d" % (len(PIECE) * 200))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": PIECE * 200})

    async def work(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await asyncio.sleep(0.8)

    talk(work, Whole(), IMPATIENT, refused)
    assert refused == ["answer_not_read"]


def test_who_reads_slowly_but_steadily_gets_the_whole_answer() -> None:
    refused: list[str] = []

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(b"GET /a HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while piece := await reader.read(2**18):
            size += piece.count(b"x")  # between them are lengths
            await asyncio.sleep(0.02)
        return size

    assert talk(work, Flood(pieces=300), IMPATIENT, refused) == 300 * len(PIECE)
    assert refused == []


class Pieces:
    """Answers as a stream does, and as what has no body."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle: Any = send.__self__  # type: ignore[attr-defined]
        beneath = cycle.transport._transport
        cycle.transport._transport = self
        self._beneath = beneath
        while (await receive()).get("more_body", False):
            pass
        status = 204 if scope["path"] == "/none" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        if status == 204:
            await send({"type": "http.response.body", "body": b""})
            return
        for text in (b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"):
            if scope["path"] == "/slow":
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._beneath.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)


@pytest.mark.parametrize(
    ("path", "ends", "writes"),
    [
        ("/", b"9\r\ndata: 1\n\n\r\n", 3),
        ("/slow", b"\r\n\r\n", 4),  # its head has nothing to wait for
        ("/none", b"\r\n\r\n", 1),
    ],
)
def test_a_head_goes_with_what_follows_and_the_last_event_with_the_end(
    path: str, ends: bytes, writes: int
) -> None:
    app = Pieces()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % path.encode())
        return await reader.read()

    told = talk(work, app)  # type: ignore[arg-type]
    assert told == b"".join(app.written)
    assert app.written[0].startswith(b"HTTP/1.1 2")
    assert app.written[0].endswith(ends)
    assert len(app.written) == writes
    if path != "/none":
        assert app.written[-1].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
