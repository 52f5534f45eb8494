"""A request on its way through the queue: what it wants, and what it holds."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from service.admission.fair import Path
from service.admission.pace import Forecast, Size
from service.admission.room import Room
from service.record import (
    PRIORITY_BATCH,
    PRIORITY_EVALUATION,
    PRIORITY_INTERACTIVE,
    Record,
)

CLASSES = {
    PRIORITY_INTERACTIVE: "interactive", PRIORITY_BATCH: "batch", PRIORITY_EVALUATION: "evaluation",
}  # fmt: skip
WAITING, STARTED, ENDED = "waiting", "started", "ended"


class Queue(Protocol):
    """What a ticket knows of `service.admission.queue.Admission`."""

    room: Room
    forecast: Forecast

    def hold(self, ticket: "Ticket", sequences: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Want:
    """What a request asks of the engine.

    Attributes:
        calls: engine requests that it is made of.
        wait_s: so long it may wait for its turn; None: as its route has it.
        own: the server's own, which keeps its own bounds: it is never refused.
    """

    size: Size
    calls: int = 1
    wait_s: float | None = None
    own: bool = False


class Ticket:
    """A request in the queue, or in the engine."""

    __slots__ = (
        "_done", "_held", "_queue", "_reserved", "_running", "calls", "cost", "kind", "own",
        "path", "places", "record", "reserve", "since", "size", "state", "timer", "turn",
        "wait_s", "width",
    )  # fmt: skip

    def __init__(self, queue: Queue, record: Record, want: Want, wait_s: float) -> None:
        self._queue, self.record = queue, record
        self.size, self.calls, self.own, self.wait_s = want.size, want.calls, want.own, wait_s
        adapter = "" if record.model is None else record.model.labels_of_metrics[0]
        priority = CLASSES.get(record.priority, CLASSES[PRIORITY_EVALUATION])
        self.path: Path = (priority, record.project, adapter)
        self.kind = record.route, adapter
        self.width = max(1, want.size.sequences // max(1, want.calls))
        self.places = min(max(1, want.size.sequences), queue.room.widest)
        self.cost = queue.forecast.expect(self.kind, want.size)
        # of a wide request only so many sequences fill the cache at once
        at_once = self.cost * self.places // max(self.places, want.size.sequences)
        self.reserve = queue.room.reserve(at_once)
        self.state = WAITING
        self.since = 0.0
        self.turn: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._running = self._done = self._held = self._reserved = 0

    def begin(self) -> None:
        """One of its calls enters the engine."""
        self._running += 1
        self._queue.hold(self, self._needs())

    def end(self) -> None:
        """One of its calls has left the engine; its places are free for others."""
        self._running -= 1
        self._done += 1
        self._queue.hold(self, self._needs())

    def _needs(self) -> int:
        """Sequences that run or are still to come; some requests make more calls than they say."""
        return self.width * max(self._running, self.calls - self._done)

    def hold(self, sequences: int) -> tuple[int, int]:
        """Keep places for so many sequences, its own number at most.

        Returns:
            Sequences and tokens that it has more than before.
        """
        held = 0 if self.state == ENDED else min(self.places, sequences)
        reserved = self.reserve * held // self.places
        more = held - self._held, reserved - self._reserved
        self._held, self._reserved = held, reserved
        return more
