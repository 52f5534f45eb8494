"""The load: streamed chat requests from a process of its own, measured alike for every server.

The process reads one block a line from stdin (JSON) and answers with one line. It reads raw
bytes and parses as little as it can, so that it takes little of the machine that it measures.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.lines import LineProcess
from bench.wire import post, share_out

TEXT = re.compile(rb'"content":\s*"[^"]')
TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
END = b"0\r\n\r\n"


class LoadError(Exception):
    """A request that failed: a block with one says nothing about speed."""


@dataclass(frozen=True)
class Times:
    """What a block of requests took."""

    wall_s: float
    ttft_s: list[float]
    """To the first piece of text, one a request."""
    tokens: int
    """Completion tokens, all requests together."""


class LoadClient(LineProcess):
    """The client's process, seen from the benchmark."""

    def __init__(self) -> None:
        super().__init__("bench.client")

    def run(
        self,
        port: int,
        bodies: Sequence[dict[str, Any]],
        concurrency: int,
        headers: Mapping[str, str] | None = None,
    ) -> Times:
        """Send all bodies, `concurrency` at a time. Raises LoadError."""
        question = {"port": port, "bodies": list(bodies), "concurrency": concurrency}
        result = self.ask({**question, "headers": dict(headers or {})})
        if result is None or "error" in result:
            raise LoadError("the client's process ended" if result is None else result["error"])
        return Times(**result)


async def run_block(
    port: int,
    bodies: Sequence[dict[str, Any]],
    concurrency: int,
    headers: Mapping[str, str],
) -> Times:
    """Send all bodies over `concurrency` connections, opened before the clock starts."""
    requests = [post(port, "/v1/chat/completions", body, headers) for body in bodies]
    wall_s, results = await share_out(port, requests, concurrency, _exchange)
    return Times(wall_s, [ttft for ttft, _ in results], sum(tokens for _, tokens in results))


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[float, int]:
    """Time to the first text in seconds, and completion tokens."""
    began = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(maxsplit=2)[1])
    if status != 200:
        raise LoadError(f"HTTP {status}: {(await reader.read(500)).decode(errors='replace')}")
    received = bytearray()
    ttft_s: float | None = None
    while not received.endswith(END):
        data = await reader.read(1 << 16)
        if not data:
            raise LoadError("the server cut the stream")
        received += data
        if ttft_s is None and TEXT.search(received):
            ttft_s = time.perf_counter() - began
    tokens = TOKENS.findall(received)
    if ttft_s is None or not tokens or b"data: [DONE]" not in received:
        raise LoadError(f"not a whole stream with text and usage: {bytes(received[-300:])!r}")
    return ttft_s, int(tokens[-1])


def main() -> None:
    """Serve blocks until stdin ends."""
    for line in sys.stdin:
        block = json.loads(line)
        try:
            result: dict[str, Any] = vars(asyncio.run(run_block(**block)))
        except* (LoadError, OSError, EOFError, TimeoutError) as group:
            result = {"error": "; ".join(repr(error) for error in group.exceptions[:3])}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
