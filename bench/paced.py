"""Chats that come at a steady rate, whatever the answers take: an open loop."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

DRAIN_S = 120.0


@dataclass
class Paced:
    """What came so far; read it after the block."""

    ttft_s: list[float] = field(default_factory=list)
    """To the first event, from the moment at which the request was due.

    vLLM sends it when the engine's first token comes; the first text may need several tokens.
    """
    failed: list[str] = field(default_factory=list)


@contextmanager
def paced_chats(url: str, body: dict[str, Any], each_s: float) -> Iterator[Paced]:
    """Send a chat every so many seconds for as long as the block lasts, then await the last."""
    found, ended = Paced(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_send(url, body, each_s, found, ended)))
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


async def _send(
    url: str, body: dict[str, Any], each_s: float, found: Paced, ended: threading.Event
) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    async with (
        httpx.AsyncClient(base_url=url, timeout=DRAIN_S, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        began = time.perf_counter()
        for number in itertools.count():
            due = began + number * each_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if ended.is_set():
                return
            group.create_task(_ask(client, body, number, due, found))


async def _ask(
    client: httpx.AsyncClient, body: dict[str, Any], number: int, due: float, found: Paced
) -> None:
    # no two alike: the prefix cache must not answer
    messages = [{"role": "user", "content": f"{number} {time.time_ns()} save the file"}]
    asked = {**body, "messages": messages, "stream": True}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            answer.raise_for_status()
            first = None
            async for line in answer.aiter_lines():
                if first is None and line.startswith("data: {"):
                    first = time.perf_counter() - due
        if first is None:
            raise httpx.RemoteProtocolError("a stream without an event")
        found.ttft_s.append(first)
    except httpx.HTTPError as error:
        found.failed.append(repr(error))
