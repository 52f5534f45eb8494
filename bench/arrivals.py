"""An open loop: requests are sent when they are due, whatever became of those before.

The process reads one load a line from stdin (JSON) and answers with one line. Callers hang up when
their patience ends, as callers do.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.client import END, TEXT, TOKENS, LoadError
from bench.lines import LineProcess
from bench.wire import post

_HUNG_UP = 0


@dataclass(frozen=True)
class Arrival:
    """A chat that is due so many seconds after the start."""

    at_s: float
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one; times are from the moment at which it was due."""

    at_s: float
    status: int
    """0: the caller hung up, or the connection broke, before there was one."""
    ttft_s: float | None = None
    end_s: float | None = None
    """To the end of a whole answer, or to the refusal."""
    tokens: int = 0

    @property
    def answered(self) -> bool:
        return self.status == 200 and self.end_s is not None


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments at which requests are due, `rate` a second on average."""
    generator = random.Random(seed)  # noqa: S311  # arrivals
    at_s = generator.expovariate(rate)
    while at_s < seconds:
        yield at_s
        at_s += generator.expovariate(rate)


class OpenLoop(LineProcess):
    """The process of the callers, seen from the benchmark."""

    def __init__(self) -> None:
        super().__init__("bench.arrivals")

    def run(self, port: int, arrivals: Sequence[Arrival], patience_s: float) -> list[Outcome]:
        """Send all; outcomes in the order of arrivals. Raises LoadError: the process ended."""
        sent = [asdict(one) for one in arrivals]
        found = self.ask({"port": port, "patience_s": patience_s, "arrivals": sent})
        if found is None:
            raise LoadError("the process of the callers ended")
        return [Outcome(**one) for one in found]


async def send(port: int, arrivals: Sequence[Arrival], patience_s: float) -> list[Outcome]:
    """Send each when it is due, on a connection of its own."""
    began = time.perf_counter()
    requests = [_request(port, one) for one in arrivals]
    tasks = []
    for one, request in zip(arrivals, requests, strict=True):
        due = began + one.at_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(_ask(port, request, one.at_s, due, patience_s)))
    return await asyncio.gather(*tasks)


def _request(port: int, arrival: Arrival) -> bytes:
    headers = {**arrival.headers, "Connection": "close"}
    return post(port, "/v1/chat/completions", arrival.body, headers)


async def _ask(port: int, request: bytes, at_s: float, due: float, patience_s: float) -> Outcome:
    seen: dict[str, Any] = {"status": _HUNG_UP}
    with suppress(TimeoutError, OSError, EOFError):
        async with asyncio.timeout(max(0.0, due + patience_s - time.perf_counter())):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                await _read(reader, due, seen)
            finally:
                writer.close()
    return Outcome(at_s, **seen)


async def _read(reader: asyncio.StreamReader, due: float, seen: dict[str, Any]) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    seen["status"] = int(head.split(maxsplit=2)[1])
    received = bytearray()
    if seen["status"] != 200:
        seen["end_s"] = time.perf_counter() - due
        return
    while not received.endswith(END) and (data := await reader.read(1 << 16)):
        received += data
        if "ttft_s" not in seen and TEXT.search(received):
            seen["ttft_s"] = time.perf_counter() - due
    if b"data: [DONE]" in received:
        seen["end_s"] = time.perf_counter() - due
        seen["tokens"] = int((TOKENS.findall(received) or [0])[-1])


def main() -> None:
    """Serve loads until stdin ends."""
    for line in sys.stdin:
        load = json.loads(line)
        arrivals = [Arrival(**one) for one in load["arrivals"]]
        outcomes = asyncio.run(send(load["port"], arrivals, load["patience_s"]))
        print(json.dumps([asdict(one) for one in outcomes]), flush=True)


if __name__ == "__main__":
    main()
