"""Results of a batch on their way from memory into parts that are counted."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from adapters.errors import AdapterError
from service.batches.lease import Lease
from service.batches.parts import Parts
from service.batches.queue import Batches, LeaseLost
from service.batches.results import ERROR, Result
from service.database import BatchRow

logger = logging.getLogger("modiste.batches")

LEAST_S, MOST_S = 1.0, 10.0
"""Between parts, which is what a crash repeats at most; a batch that lasts makes fewer of them."""
_GROWS_S = 60.0
"""In so long by a second."""
PART_BYTES = 8 * 2**20
"""A part is made sooner once so much waits."""
MOST_BYTES = 64 * 2**20
"""No line is asked while so much waits."""


def pause_s(age_s: float) -> float:
    """Between parts of a batch that this server has had for so long."""
    return min(MOST_S, LEAST_S + age_s / _GROWS_S)


@dataclass(frozen=True, slots=True)
class _Part:
    """Stored; whether it was counted is not known before `keep` says so."""

    place: str
    results: Sequence[Result]


class Keeping:
    """The results of one batch at this server.

    Attributes:
        moved: the line that was the first open one here has a result.
    """

    def __init__(self, parts: Parts, batches: Batches, lease: Lease, server: str) -> None:
        self._parts, self._batches, self._lease, self._server = parts, batches, lease, server
        self.moved = False
        self._waiting: list[Result] = []
        self._part: _Part | None = None
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._began = self._kept = monotonic()
        self._room = asyncio.Event()
        self._room.set()

    def add(self, result: Result) -> None:
        self._waiting.append(result)
        self._count(len(result.text))

    @property
    def waits(self) -> bool:
        """Whether a result is not kept yet."""
        at_it = self._task is not None and not self._task.done()
        return bool(self._waiting) or self._part is not None or at_it

    async def room(self) -> None:
        """Wait while too much waits."""
        await self._room.wait()

    def tend(self) -> None:
        """Begin to keep what waits, when it is time."""
        now = monotonic()
        due = now - self._kept >= pause_s(now - self._began) or self._bytes >= PART_BYTES
        if due and self.waits and (self._task is None or self._task.done()):
            self._kept = now
            self._start().add_done_callback(self._told)

    async def keep(self) -> None:
        """Keep what waits.

        Raises:
            LeaseLost: another server has the batch.
            AdapterError, OSError: it waits for the next time.
        """
        while self.waits:
            task = self._task
            if task is None or task.done():
                task = self._start()
            await asyncio.shield(task)  # to its end, whoever goes away meanwhile

    def _start(self) -> "asyncio.Task[None]":
        self._task = asyncio.create_task(self._keep())
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._task

    async def _keep(self) -> None:
        if self._part is None:
            taken, self._waiting = self._waiting, []
            try:
                lines = (result.line() for result in taken)
                place = await asyncio.to_thread(self._parts.write, self._lease.batch.id, lines)
            except BaseException:
                self._waiting = taken + self._waiting
                raise
            self._part = _Part(place, taken)
        part, began, moved = self._part, monotonic(), self.moved
        failed = sum(result.kind == ERROR for result in part.results)

        def keep() -> BatchRow:
            return self._batches.keep(
                self._lease.batch.id, self._server, part.place, len(part.results) - failed, failed,
                moved=moved,
            )  # fmt: skip

        # after a failure that may have come after the commit the same place is counted once
        batch = await asyncio.to_thread(keep)
        self._lease.seen(batch, began)
        self._part = None
        self._count(-sum(len(result.text) for result in part.results))

    def _count(self, more: int) -> None:
        self._bytes += more
        if self._bytes < MOST_BYTES:
            self._room.set()
        else:
            self._room.clear()

    def _told(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AdapterError | OSError):
            logger.warning("%s: answers stay in memory: %s", self._lease.batch.id, error)
        elif error is not None and not isinstance(error, LeaseLost):  # told by the lease itself
            logger.error("%s: answers stay in memory", self._lease.batch.id, exc_info=error)
