"""What the processes of load have in common: a request as bytes, and connections that share some.

No library of HTTP: a client takes little of the machine that it measures.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

READ_LIMIT_S = 300.0

Answer = TypeVar("Answer")
Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[Answer]]


def post(port: int, path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """A POST of a JSON body."""
    payload = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{more}"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


async def share_out(
    port: int, requests: Sequence[bytes], connections: int, exchange: Exchange[Answer]
) -> tuple[float, list[Answer]]:
    """Send all requests over connections that are open before the clock starts.

    Returns:
        Seconds, and the answers in the order of the requests.
    """
    opened = [
        await asyncio.open_connection("127.0.0.1", port)
        for _ in range(min(connections, len(requests)))
    ]
    waiting = iter(enumerate(requests))
    found: dict[int, Answer] = {}

    async def drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number, request in waiting:
            async with asyncio.timeout(READ_LIMIT_S):
                found[number] = await exchange(reader, writer, request)

    began = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as tasks:
            for reader, writer in opened:
                tasks.create_task(drain(reader, writer))
        wall_s = time.perf_counter() - began
    finally:
        for _, writer in opened:
            writer.close()
    return wall_s, [found[number] for number in range(len(requests))]
