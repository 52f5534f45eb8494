"""The queue before the engine: a request starts, waits for its turn, or is refused at once.

A request is let in as a whole, with all of its sequences, so none ever waits for a place
while it holds another. Turns are fair by class, project and adapter, in tokens.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

from service.admission.fair import FairQueue, Path
from service.admission.pace import Forecast, Pace
from service.admission.presence import Presence
from service.admission.room import Room, Step
from service.admission.ticket import ENDED, STARTED, Ticket, Want
from service.errors import Overloaded
from service.record import Record
from service.telemetry import Metrics
from service.traffic import Traffic

CLASS_WEIGHTS = {"interactive": 18.0, "batch": 1.0, "evaluation": 1.0}
"""What nobody waits for gets a twentieth of the engine each, however much somebody waits."""

LOOK_S = 0.5
"""While requests wait: the engine's figures become old without anybody telling."""
LONGEST_RETRY_S = 600
USUAL = 16
"""Requests over which what they cost is averaged."""
SAVED = 4
"""Answers in each place of its share whose cost a project may save."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the queue, from the settings."""

    requests: int
    tokens: int
    wait_s: float
    """Of requests that don't say how long they may wait."""
    wait_s_by_route: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of projects; 1 where none is given."""


class Admission:
    """Who may start now, who waits, and who is refused.

    Args:
        clock: seconds; any clock that only goes on.
    """

    def __init__(
        self,
        room: Room,
        limits: Limits,
        metrics: Metrics,
        traffic: Traffic,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.room, self.limits, self._metrics, self._traffic = room, limits, metrics, traffic
        self._clock = clock
        self.pace, self.forecast = Pace(), Forecast()
        self._queue: FairQueue[Ticket] = FairQueue(self._weight, self._credit)
        self._presence = Presence(self._weight)
        self._usual = 0.0
        """What requests cost lately, each of its places."""
        self._bounded = self._bounded_tokens = 0
        """What waits without the server's own."""
        self._look: asyncio.TimerHandle | None = None
        self.engine_tells = False
        """Whether `observe` is called; else the pace is measured by what ends."""

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def enter(self, record: Record, want: Want) -> None:
        """Let a request in once it is its turn; its place is free again when its record ends.

        Raises:
            Overloaded: it can't start in time, or the queue is full.
        """
        wait_s = want.wait_s
        if wait_s is None:
            wait_s = self.limits.wait_s_by_route.get(record.route, self.limits.wait_s)
        ticket = Ticket(self, record, want, wait_s)
        record.ticket = ticket
        now = ticket.since = self._clock()
        self._presence.see(ticket.path[:2], now)
        if not self._queue and self._has_room(ticket, now):
            self._queue.charge(ticket.path, ticket.cost)
            self._start(ticket, now)
            return
        if not want.own:
            self._check(ticket)
        await self._wait(ticket)

    def observe(self, step: Step) -> None:
        """The engine has made a step."""
        now = self._clock()
        self.room.observe(step, now)
        self.pace.step(step.tokens, now, waiting=bool(self._queue))
        if self._queue:
            self._pump()

    def hold(self, ticket: Ticket, sequences: int) -> None:
        """A request that was let in needs so many places from now on."""
        if self._take(ticket, sequences) and self._queue:
            self._pump()

    def _take(self, ticket: Ticket, sequences: int) -> bool:
        more, tokens = ticket.hold(sequences)
        if not more:
            return False
        self.room.take(more, tokens)
        self._presence.hold(ticket.path[:2], more, self._clock())
        self._metrics.running.inc(more)
        return True

    # the queue

    def _weight(self, path: Path) -> float:
        if len(path) == 1:
            return CLASS_WEIGHTS[path[0]]
        return self.limits.weights.get(path[1], 1.0) if len(path) == 2 else 1.0

    def _credit(self, path: Path) -> float:
        """A project may save what some answers in all of its share of the places cost: so many of
        its requests may come together, if mostly fewer do."""
        if len(path) != 2:
            return 0.0
        return SAVED * self._usual * self._presence.share(path, self.room.at_once)

    def _check(self, ticket: Ticket) -> None:
        expected = self._expected_s(ticket.path)
        if expected is not None and expected > ticket.wait_s:
            raise self._refusal(
                ticket, "deadline", f"a place is expected in {expected:.1f} s, and the request "
                f"may wait {ticket.wait_s:g} s"
            )  # fmt: skip
        while self._is_full(ticket.cost):
            message = (
                f"{self._bounded} requests of about {self._bounded_tokens} tokens wait already"
            )
            other = self._gives_way(ticket)
            if other is None:
                raise self._refusal(ticket, "queue_full", message)
            self._refuse(other, "queue_full", message)

    def _is_full(self, cost: int) -> bool:
        over = self._bounded_tokens + cost > self.limits.tokens
        return self._bounded >= self.limits.requests or (self._bounded > 0 and over)

    def _gives_way(self, ticket: Ticket) -> Ticket | None:
        """Who leaves a full queue for a request: one of a lower class, else of who fills it.

        So nobody is kept out by others who have more than their share of it.
        """
        for name in reversed(CLASS_WEIGHTS):
            other = self._queue.newest_of_heaviest((name,))
            if name == ticket.path[0]:
                return None if other is None or self._weighs_more(ticket, other) else other
            if other is not None and not other.own:
                return other
        return None

    def _weighs_more(self, ticket: Ticket, other: Ticket) -> bool:
        """Whether a request's project would have more queued, for its weight, than another has."""
        mine, its = ticket.path[:2], other.path[:2]
        with_it = self._queue.backlog_of(mine) + ticket.cost
        return (
            other.own
            or mine == its
            or with_it / self._weight(mine) >= self._queue.backlog_of(its) / self._weight(its)
        )

    def _expected_s(self, path: Path) -> float | None:
        return self.pace.wait_s(self._queue.ahead(path))

    async def _wait(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        ticket.turn = loop.create_future()
        self._queue.push(ticket.path, ticket, ticket.cost)
        self._count(ticket, 1)
        if not ticket.own:
            ticket.timer = loop.call_later(ticket.wait_s, self._expire, ticket)
        # lines of batches give way to it while it is not yet in the engine
        self._traffic.enter(ticket.record)
        try:
            self._pump()
            await ticket.turn
        except asyncio.CancelledError:
            if ticket in self._queue:
                self._drop(ticket)
                self._pump()
            elif not ticket.turn.cancelled():
                ticket.turn.exception()  # nobody is left to be told
            raise
        finally:
            self._traffic.leave(ticket.record)
            if ticket.timer is not None:
                ticket.timer.cancel()

    def _pump(self) -> None:
        """Let in whoever's turn it is, while there is room."""
        now = self._clock()
        while (ticket := self._queue.peek()) is not None:
            if ticket.turn is not None and ticket.turn.cancelled():
                self._drop(ticket)  # its record may have ended already, and would end no more
                continue
            if not self.room.fits(ticket.reserve, now):
                break
            if self._is_kept(ticket, now):
                ticket = self._other(ticket, now)
                if ticket is None:
                    break
            self._queue.take(ticket)
            self._count(ticket, -1)
            self._start(ticket, now)
        if self._queue and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)

    def _other(self, ticket: Ticket, now: float) -> Ticket | None:
        """One of another project, for which a place was kept that this one may not have."""
        for other in self._queue.peek_past(ticket.path[:2]):
            gone = other.turn is not None and other.turn.cancelled()
            if not gone and self._has_room(other, now):
                return other
        return None

    def _has_room(self, ticket: Ticket, now: float) -> bool:
        return self.room.fits(ticket.reserve, now) and not self._is_kept(ticket, now)

    def _is_kept(self, ticket: Ticket, now: float) -> bool:
        """Whether the place that is free is one of those kept for others."""
        kept = self._presence.kept_from(
            ticket.path[:2], ticket.places, self.room.at_once, self._queue.backlog_of, now
        )
        return bool(kept) and self.room.running >= self.room.at_once - kept

    def _count(self, ticket: Ticket, more: int) -> None:
        self._metrics.queued.inc(more)
        if not ticket.own:
            self._bounded += more
            self._bounded_tokens += more * ticket.cost

    def _drop(self, ticket: Ticket) -> None:
        """Its caller has gone."""
        self._queue.remove(ticket)
        self._count(ticket, -1)
        self._metrics.refusals.labels("gone").inc()

    def _look_again(self) -> None:
        self._look = None
        self._pump()

    def _start(self, ticket: Ticket, now: float) -> None:
        record = ticket.record
        ticket.state = STARTED
        self._take(ticket, ticket.places)
        self._usual += (ticket.cost / ticket.places - self._usual) / USUAL
        if record.sequences is None and ticket.size.sequences > ticket.places:
            record.sequences = asyncio.Semaphore(max(1, ticket.places // ticket.width))
        record.queued_s = now - ticket.since
        record.on_end.append(partial(self._leave, ticket))
        self._metrics.admitted(ticket.path[0], record.queued_s)
        if ticket.turn is not None and not ticket.turn.done():
            ticket.turn.set_result(None)

    def _leave(self, ticket: Ticket) -> None:
        """A request has ended: count what it really took, and let others in."""
        record = ticket.record
        used = record.prompt_tokens + record.completion_tokens
        self._queue.settle(ticket.path, used - ticket.cost)
        if record.answered and not record.aborted:
            self.forecast.learn(
                ticket.kind, ticket.size, record.prompt_tokens, record.completion_tokens
            )
        if not self.engine_tells:
            self.pace.step(used, self._clock(), waiting=bool(self._queue))
        ticket.state = ENDED
        self.hold(ticket, 0)

    # refusals

    def _expire(self, ticket: Ticket) -> None:
        if ticket.turn is not None and not ticket.turn.done():
            self._refuse(
                ticket, "expired", f"no place became free in {ticket.wait_s:g} s, as long as the "
                "request may wait"
            )  # fmt: skip
            self._pump()

    def _refuse(self, ticket: Ticket, reason: str, message: str) -> None:
        """One that waits: it leaves the queue."""
        self._queue.remove(ticket)
        self._count(ticket, -1)
        refusal = self._refusal(ticket, reason, message)
        if ticket.turn is not None and not ticket.turn.done():
            ticket.turn.set_exception(refusal)

    def _refusal(self, ticket: Ticket, reason: str, message: str) -> Overloaded:
        self._metrics.refusals.labels(reason).inc()
        expected = self._expected_s(ticket.path)
        later = 0.0 if expected is None else expected
        if reason == "deadline":  # by then it would be let into the queue
            later -= ticket.wait_s
        return Overloaded(
            f"the server is busy: {message}",
            hint="try again after the time in Retry-After, or allow a longer wait with the header "
            "x-modiste-timeout-s",
            retry_after_s=min(LONGEST_RETRY_S, max(1, math.ceil(later))),
            queue={
                "refused": reason, "queued": len(self._queue),
                "queued_tokens": self._queue.backlog, "running": self.room.running,
                "expected_wait_s": None if expected is None else round(expected, 3),
            },
        )  # fmt: skip
