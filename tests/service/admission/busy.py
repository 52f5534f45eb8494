"""An event loop whose time passes only while all wait, and a stand-in engine in it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry

from service.admission.pace import Size
from service.admission.queue import Admission, Limits
from service.admission.room import Room
from service.admission.ticket import Want
from service.errors import Overloaded
from service.record import Record
from service.telemetry import Metrics
from service.traffic import Traffic

TOKENS = 100
"""Of a request, as the queue expects and as it takes."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeps take no time."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        really = selector.select

        def select(timeout: float | None) -> Any:
            assert timeout is not None, "all wait, and nothing will happen"
            self._now += max(0.0, timeout)
            return really(0)

        selector.select = select

    def time(self) -> float:
        return self._now


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


class Busy:
    """A queue before an engine that takes a second for every request, whatever runs beside."""

    def __init__(self, sequences: int = 4, **limits: Any) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.traffic = Traffic()
        known = {"requests": 1000, "tokens": 10**9, "wait_s": 30.0} | limits
        self.admission = Admission(
            Room(sequences, most=sequences), Limits(**known), self.metrics, self.traffic,
            clock=now,
        )  # fmt: skip
        self.at_once = self.most_at_once = 0
        self.started: list[str] = []
        self.refused: list[Overloaded] = []

    async def ask(self, project: str = "p", wait_s: float | None = None, **more: Any) -> Record:
        """A request from its arrival to its end; `failed` where it was refused."""
        record = Record(
            "r", "/v1/generate", project=project, priority=more.pop("priority", 0)
        )  # fmt: skip
        calls, took_s = more.pop("calls", 1), more.pop("took_s", 1.0)
        want = Want(Size(0, calls, TOKENS), calls, wait_s, own=more.pop("own", False))
        self.admission.forecast.learn(
            ("/v1/generate", ""), Size(1, 1), 0, TOKENS
        )  # as if others had come before
        try:
            await self.admission.enter(record, want)
            self.started.append(project)
            await asyncio.gather(*(self._call(record, took_s) for _ in range(calls)))
            record.answered = True
        except Overloaded as error:
            record.failed = True
            self.refused.append(error)
        finally:
            record.finish()
        return record

    async def _call(self, record: Record, took_s: float) -> None:
        async with self.traffic.passing(record, None):
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await asyncio.sleep(took_s)
                record.completion_tokens += TOKENS
            finally:
                self.at_once -= 1

    async def arrive(self, count: int, **how: Any) -> list[Record]:
        """So many at once; what became of each."""
        return await asyncio.gather(*(self.ask(**how) for _ in range(count)))

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def is_idle(self) -> bool:
        room = self.admission.room
        return (room.running, room.reserved, len(self.admission)) == (0, 0, 0)
