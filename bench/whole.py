"""Requests whose answers come whole, from a process of its own that does as little as it can.

The process reads one block a line from stdin (JSON) and answers with one line.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.client import LoadError
from bench.lines import LineProcess
from bench.wire import post, share_out

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """What a block of requests took, and brought."""

    wall_s: float
    took_s: list[float]
    """One a request, in the order in which they were given."""
    answers: list[dict[str, Any]]


class WholeClient(LineProcess):
    """The client's process, seen from the benchmark."""

    def __init__(self) -> None:
        super().__init__("bench.whole")

    def run(
        self, port: int, path: str, bodies: Sequence[dict[str, Any]], connections: int
    ) -> Block:
        """POST all bodies over so many connections. Raises LoadError."""
        question = {"port": port, "path": path, "bodies": list(bodies), "connections": connections}
        result = self.ask(question)
        if result is None or "error" in result:
            raise LoadError("the client's process ended" if result is None else result["error"])
        return Block(**result)


async def run_block(
    port: int, path: str, bodies: Sequence[dict[str, Any]], connections: int
) -> Block:
    """Send all bodies over connections that were opened before the clock starts."""
    requests = [post(port, path, body) for body in bodies]
    wall_s, found = await share_out(port, requests, connections, _exchange)
    return Block(wall_s, [took for took, _ in found], [json.loads(answer) for _, answer in found])


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[float, bytes]:
    """Time to the whole answer in seconds, and its body."""
    began = time.perf_counter()
    writer.write(request)
    answer = await _answer(reader)
    return time.perf_counter() - began, answer


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    if length is None:
        raise LoadError("an answer without a length")
    body = await reader.readexactly(int(length[1]))
    if b" 200 " not in head[:16]:
        raise LoadError(f"HTTP {head[9:12].decode()}: {body[:500].decode(errors='replace')}")
    return body


def main() -> None:
    """Serve blocks until stdin ends."""
    for line in sys.stdin:
        try:
            result: dict[str, Any] = asdict(asyncio.run(run_block(**json.loads(line))))
        except* (LoadError, OSError, EOFError, TimeoutError) as group:
            result = {"error": "; ".join(repr(error) for error in group.exceptions[:3])}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
