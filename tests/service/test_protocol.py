"""Connections of senders that break off, flood or never end, on real sockets."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service.protocol import MAX_HEADERS
from service.settings import Settings
from tests.service.wire import HELLO, App, answer, talk


def sent(data: bytes, *, close: bool = True) -> tuple[int, Any]:
    """The answer to some bytes, after which the server closes."""

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        writer.write(data)
        status, body = await answer(reader)
        if close:
            assert await reader.read() == b""
        return status, json.loads(body)

    found: tuple[int, Any] = talk(work)
    return found


def headers(count: int, size: int = 1) -> bytes:
    lines = b"".join(b"x-%d: %s\r\n" % (n, b"v" * size) for n in range(count))
    return b"GET /a HTTP/1.1\r\nhost: a\r\n" + lines + b"\r\n"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /" + b"a" * 600 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
        (b"GET /?" + b"a" * 600, 414, "url_too_long"),
        (headers(3, 900), 431, "headers_too_large"),
        (headers(MAX_HEADERS + 1), 431, "headers_too_large"),
        (b"GET /a HTTP/1.1\r\nx: " + b"v" * 4000, 431, "headers_too_large"),
        (b"GET /a HTTP/1.1\r\n" + b"n" * 4000, 431, "headers_too_large"),
        (b"\x00\xff not HTTP\r\n\r\n", 400, "invalid_http"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 400, "invalid_http"),
        (b"POST /a HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400, "invalid_http"),
        (b"POST /a HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400,
         "invalid_http"),
        (b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400, "invalid_http"),
        (b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"f" * 40, 400,
         "invalid_http"),
    ],
)  # fmt: skip
def test_a_head_that_is_too_much_or_none_is_refused_in_the_apis_shape(
    data: bytes, status: int, code: str
) -> None:
    got, body = sent(data)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code", "hint"}


def test_what_is_within_the_limits_passes() -> None:
    for data in (HELLO, headers(3, 500), headers(MAX_HEADERS - 1), b"GET /" + b"a" * 490 +
                 b" HTTP/1.1\r\n\r\n"):  # fmt: skip
        assert sent(data, close=False) == (200, 0)


CHUNKED = b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data", [b"0\r\nx: ", b"0\r\n" + b"x: y\r\n" * MAX_HEADERS, b"1;a="], ids=["one", "many", "ext"]
)
def test_what_stands_around_a_body_is_bounded_too(data: bytes) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(CHUNKED + data)
        asking = asyncio.create_task(answer(reader))
        for _ in range(20):
            if not asking.done():
                writer.write(b"v" * 500)
            await asyncio.sleep(0.002)
        return (await asking)[0]

    assert talk(work) == 431


@pytest.mark.parametrize("data", [b"GET /a HTTP/1.1\r\nhost: a\r\n", b"GE", HELLO[:-1]])
def test_a_head_that_never_ends_is_a_408(data: bytes) -> None:
    status, body = sent(data)
    assert (status, body["error"]["code"]) == (408, "request_timeout")


def test_a_head_is_late_however_often_a_byte_comes() -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(b"GET /a HTTP/1.1\r\n")
        asking = asyncio.create_task(answer(reader))
        sent = 0
        while not asking.done() and sent < 100:
            writer.write(b"x")
            sent += 1
            await asyncio.sleep(0.02)
        return (await asking)[0]

    assert talk(work) == 408


def test_who_asks_nothing_is_let_go_of() -> None:
    async def work(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bytes:
        return await reader.read()

    assert talk(work) == b""


def test_a_connection_that_is_kept_answers_again_and_its_heads_are_bounded_too() -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[int]:
        statuses = []
        for _ in range(3):
            writer.write(b"POST /a HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello")
            assert await answer(reader) == (200, b"5")
        for data in (b"\r\n", b"GET /slow HTTP/1.1\r\n"):
            writer.write(data)
            await asyncio.sleep(0.05)
        statuses.append((await answer(reader))[0])
        assert await reader.read() == b""
        return statuses

    assert talk(work) == [408]


def test_requests_in_one_go_are_answered_in_their_order() -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
        bodies = [b"a" * size for size in (1, 22, 333)]
        writer.write(
            b"".join(b"POST /a HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(b), b)
                     for b in bodies)
        )  # fmt: skip
        return [(await answer(reader))[1] for _ in bodies]

    assert talk(work) == [b"1", b"22", b"333"]


def test_all_requests_of_a_caller_who_goes_away_hear_of_it() -> None:
    heard: list[str] = []

    class Waiting(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            heard.append(scope["path"])

    async def work(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + HELLO)
        await asyncio.sleep(0.05)
        writer.transport.abort()

    talk(work, Waiting())
    assert heard == ["/hello"]  # the second was never begun


def test_no_refusal_is_taken_for_the_answer_before_it() -> None:
    """The first request is still being answered when nonsense follows it."""

    class Slow(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(0.2)
            await super().__call__(scope, receive, send)

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(HELLO + b"\x00 nonsense\r\n\r\n")
        return await reader.read()

    assert b"invalid_http" not in talk(work, Slow())


def test_a_body_in_small_pieces_arrives() -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        for byte in b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.0005)
        return await answer(reader)

    assert talk(work) == (200, b"3")


def test_a_body_that_goes_on_after_its_answer_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.protocol.LINGER_S", 0.2)

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST /early HTTP/1.1\r\ncontent-length: 100000\r\n\r\n")
        assert await answer(reader) == (200, b"0")
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        return await ended

    assert talk(work) == b""


FEW = Settings(max_connections=2)


def test_connections_over_the_bound_are_refused_but_for_probes() -> None:
    refused: list[str] = []

    async def work(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[Any]:
        address = writer.get_extra_info("peername")

        async def ask(path: bytes) -> tuple[bytes, bytes]:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % path)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            rest = await reader.read()  # the server closes
            writer.close()
            return head, rest

        _, second = await asyncio.open_connection(*address)
        over, probe = await ask(b"/hello"), await ask(b"/health/live?a=b")
        second.close()
        await asyncio.sleep(0.05)
        reader, third = await asyncio.open_connection(*address)
        third.write(HELLO)
        within = await answer(reader)
        third.close()
        return [over, probe, within]

    (head, body), (probe_head, _), within = talk(work, None, FEW, refused)
    assert head.startswith(b"http/1.1 503 ")
    assert b"retry-after: 1\r\n" in head
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("too_many_connections", "server_error")
    assert probe_head.startswith(b"http/1.1 200 ")
    assert within == (200, b"0")
    assert refused == ["too_many_connections"]


def test_far_too_many_connections_are_refused_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.protocol.SPARE", 1)

    async def work(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        address = writer.get_extra_info("peername")
        more = [await asyncio.open_connection(*address) for _ in range(3)]
        status, _ = await answer(more[-1][0])
        for _, other in more:
            other.close()
        return status

    assert talk(work, None, FEW) == 503
