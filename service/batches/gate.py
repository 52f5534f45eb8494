"""Which lines of batches the engine has at once: few while somebody waits for an answer."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, TypeVar

from service.traffic import Traffic

QUIET_S = 1.0
"""So long without a request that somebody waits for, and batches take all."""
TURN_S = 10.0
"""So long a line waits for its adapter to have a slot, then lines of other adapters wait too."""
STARTING = 1
"""Lines on their way into the engine while somebody waits: many at once, and whoever comes waits in
the event loop until all of them have been read, checked and tokenised."""
_LOOK_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Want:
    """What a line takes.

    Attributes:
        model: as the line names it.
        weight: sequences.
    """

    project: str
    model: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """What a line's work is told: its places, and whom to tell that it is in the engine."""

    places: int
    entered: Callable[[], None]


class _Line:
    """One that waits or runs."""

    __slots__ = ("displaced", "number", "since", "starting", "taken", "task", "turn", "want")

    def __init__(self, want: Want, number: int) -> None:
        self.want, self.number = want, number
        self.turn: asyncio.Future[None] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.taken = 0
        self.displaced = self.starting = False
        self.since = monotonic()


class Gate:
    """Shares places by project; in a project the first come are the first served.

    A line takes as many places as it has sequences. One that has more than there are runs alone,
    with so many at once.

    Args:
        alone: places while nobody waits.
        beside: places beside requests that somebody waits for.
        slots: adapters that the engine runs at once: it leaves out whoever needs one more,
            whatever the priority, so one is kept free.
        base: the model that needs no adapter.
    """

    def __init__(
        self, traffic: Traffic, alone: int, beside: int, slots: int = 1, base: str | None = None
    ) -> None:
        self._traffic, self._alone, self._beside = traffic, alone, beside
        self._slots = max(1, slots)  # a name that is no adapter's is asked too, and refused
        self._adapters: dict[str, str | None] = {} if base is None else {base: None}
        self._waiting: dict[tuple[str, str], deque[_Line]] = {}
        self._running: list[_Line] = []
        self._numbers = count()
        traffic.on_arrival.append(self._make_room)

    @property
    def _quiet(self) -> bool:
        return self._traffic.quiet_s() > QUIET_S

    @property
    def places(self) -> int:
        return self._alone if self._quiet else self._beside

    @property
    def most(self) -> int:
        """Lines that can run at once."""
        return self._alone

    @property
    def running(self) -> int:
        """Places that are taken."""
        return sum(line.taken for line in self._running)

    def learn(self, model: str, adapter: str | None) -> None:
        """What answered a model's line, by its name in the engine; None: the base."""
        self._adapters[model] = adapter

    async def run(self, want: Want, work: Callable[[Turn], Coroutine[Any, Any, T]]) -> T:
        """Do a line's work in its places.

        It is cancelled when somebody comes who needs them, and done again later.
        """
        line = _Line(want, next(self._numbers))
        while True:
            await self._enter(line)
            turn = Turn(line.taken, partial(self._entered, line))
            line.task = asyncio.create_task(work(turn))
            try:
                await asyncio.wait({line.task})
            finally:
                if not line.task.done():
                    line.task.cancel()
                    await asyncio.wait({line.task})
                self._leave(line)
            if not (line.displaced and line.task.cancelled()):
                result: T = line.task.result()
                return result
            line.displaced = False

    async def follow(self) -> None:
        """Let lines in as it becomes quiet, for as long as the server runs."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._admit()

    async def _enter(self, line: _Line) -> None:
        line.since = monotonic()
        line.turn = turn = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault((line.want.project, line.want.model), deque())
        at = len(queue)
        while at and queue[at - 1].number > line.number:  # one that was here before
            at -= 1
        queue.insert(at, line)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if line in self._running:
                self._leave(line)
            else:
                self._remove(line)
            raise

    def _entered(self, line: _Line) -> None:
        if line.starting:
            line.starting = False
            self._admit()

    def _leave(self, line: _Line) -> None:
        line.starting = False
        self._running.remove(line)
        self._admit()

    def _remove(self, line: _Line) -> None:
        key = line.want.project, line.want.model
        self._waiting[key].remove(line)
        if not self._waiting[key]:
            del self._waiting[key]

    def _admit(self) -> None:
        while (line := self._next()) is not None:
            self._remove(line)
            self._running.append(line)
            line.taken, line.starting = min(line.want.weight, self.places), True
            if line.turn is not None and not line.turn.done():
                line.turn.set_result(None)

    def _next(self) -> _Line | None:
        """The line whose turn it is, if it has room."""
        if not self._waiting:
            return None
        if not self._quiet and sum(line.starting for line in self._running) >= STARTING:
            return None
        busy = Counter[str]()
        for line in self._running:
            busy[line.want.project] += line.taken
        heads = sorted(
            (queue[0] for queue in self._waiting.values()),
            key=lambda line: (busy[line.want.project], line.number),
        )
        for line in heads:
            if self._has_slot(line):  # a heavy one is not passed by light ones for ever
                return line if self._has_room(line) else None
            if monotonic() - line.since > TURN_S and self._would_have_slot(line):
                return None
        return None

    def _has_room(self, line: _Line) -> bool:
        taken = self.running
        return not taken or taken + min(line.want.weight, self.places) <= self.places

    def _has_slot(self, line: _Line) -> bool:
        """Whether the engine can run the line's adapter beside all others."""
        adapter = self._adapter(line)
        if adapter is None:
            return True
        ours, theirs = self._in_use(self._running), self._traffic.adapters
        if len(ours | theirs) > self._slots:  # somebody waits for a slot
            return adapter in theirs
        if adapter in ours | theirs:
            return True
        return len(ours) < max(1, self._slots - 1) and len(ours | theirs) < self._slots

    def _would_have_slot(self, line: _Line) -> bool:
        """Whether the engine can run the line's adapter once the lines before it have ended."""
        return len(self._traffic.adapters | self._in_use([line])) <= self._slots

    def _adapter(self, line: _Line) -> str | None:
        return self._adapters.get(line.want.model, line.want.model)

    def _in_use(self, lines: Iterable[_Line]) -> set[str]:
        return {name for line in lines if (name := self._adapter(line)) is not None}

    def _make_room(self) -> None:
        """Somebody came: end the lines beyond the places and slots that are left, the newest
        first."""
        if not self._running:  # mostly, and each request asks
            return
        places, theirs = self.places, self._traffic.adapters
        stay: list[_Line] = []
        taken = 0
        for line in sorted(self._running, key=lambda line: line.number):
            adapters = theirs | self._in_use([*stay, line])
            fits = len(adapters) <= self._slots or self._adapter(line) in (None, *theirs)
            if fits and taken + line.taken <= places:
                stay.append(line)
                taken += line.taken
            elif line.task is not None and not line.task.done():
                line.displaced = True
                line.task.cancel()
