"""A server that answers at known times, to measure the load generator itself.

`python -m loadtests.standin --port 0` prints its port. It notes when it really wrote what, so that
its own delays are not laid to the load generator: GET /times tells, and forgets.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass
class StandIn:
    """Its pace, and what it did."""

    ttft_s: float
    gap_s: float
    tokens: int
    places: int
    """Requests answered at once; others wait. 0: any."""
    running: int = 0
    waiting: int = 0
    first_ms: list[float] = field(default_factory=list)
    end_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.places if self.places > 0 else 1_000_000)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                began = time.perf_counter()
                if head.startswith(b"GET"):
                    writer.write(_whole(self._told(head.split(maxsplit=2)[1])))
                else:
                    await self._answer(json.loads(body), writer, began)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _told(self, path: bytes) -> bytes:
        if path == b"/v1/models":
            return json.dumps({"object": "list", "data": [{"id": "stand-in"}]}).encode()
        if path == b"/metrics":
            return (
                f"vllm:num_requests_running {self.running}\n"
                f"vllm:num_requests_waiting {self.waiting}\n"
            ).encode()
        if path == b"/times":
            told = json.dumps({"first_ms": self.first_ms, "end_ms": self.end_ms}).encode()
            self.first_ms, self.end_ms = [], []
            return told
        return json.dumps({"version": "stand-in"}).encode()

    async def _answer(
        self, body: dict[str, object], writer: asyncio.StreamWriter, began: float
    ) -> None:
        self.waiting += 1
        async with self._free:
            self.waiting, self.running = self.waiting - 1, self.running + 1
            try:
                if body.get("stream"):
                    await self._stream(body, writer, began)
                else:
                    await asyncio.sleep(self.ttft_s + self.gap_s * (self.tokens - 1))
                    writer.write(_whole(json.dumps({"usage": self._usage(body)}).encode()))
            finally:
                self.running -= 1
        self.end_ms.append((time.perf_counter() - began) * 1000)

    async def _stream(
        self, body: dict[str, object], writer: asyncio.StreamWriter, began: float
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        async for number in self._paced(time.perf_counter()):
            piece = {"choices": [{"index": 0, "delta": {"content": f" w{number}"}}]}
            writer.write(_chunk(json.dumps(piece)))
            await writer.drain()
            if number == 0:
                self.first_ms.append((time.perf_counter() - began) * 1000)
        end = json.dumps({"choices": [], "usage": self._usage(body)})
        writer.write(_chunk(end) + _chunk("[DONE]") + b"0\r\n\r\n")

    async def _paced(self, started: float) -> AsyncIterator[int]:
        for number in range(self.tokens):
            due = started + self.ttft_s + self.gap_s * number
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            yield number

    def _usage(self, body: dict[str, object]) -> dict[str, int]:
        """Its tokens are words."""
        text = json.dumps(body.get("messages", body.get("prompt", "")))
        return {"prompt_tokens": len(text.split()), "completion_tokens": self.tokens}


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _chunk(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n" % len(event) + event + b"\r\n"


async def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--places", type=int, default=0)
    options = parser.parse_args()
    stand_in = StandIn(
        options.ttft_ms / 1000, options.gap_ms / 1000, options.tokens, options.places
    )
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", options.port, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
