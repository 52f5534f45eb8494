"""Room that a server takes ahead, so that not every request asks the database.

Where much is left of a limit, one look at the database counts several requests: the one at hand,
and some that will come within the same second. Those are let in from memory. What nobody came for
is given back; so no more is ever let in than the limits say, and at another server at most a small
part of what was left is missing for about a second. Where little is left, each request is counted
by itself.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from service.limiting.standing import Outcome, Seen, Use
from service.limiting.windows import Correction, Returned, Subject, Take

MOST = 64
"""Requests that are counted at once."""
SHARE = 64
"""One of so many requests and tokens that are left is taken ahead at most."""
PLACES_SHARE = 16
"""The same of places; those that end are used again, so that a few are enough."""
IDLE_S = 1.0
"""A place that nobody used for so long is given back."""
FORGET_S = 60.0

Subjects = tuple[Subject, ...]


@dataclass(slots=True)
class _Stock:
    """What was taken ahead for a key and its project.

    Attributes:
        seen: how both stood when the database was asked last, with all that was taken ahead.
        second: for which it was counted; `ends` as `monotonic` says.
        places: each with the time since when it is idle.
    """

    seen: list[Seen]
    second: int = 0
    ends: float = 0.0
    requests: int = 0
    tokens: int = 0
    places: list[tuple[str, float]] = field(default_factory=list)
    used: float = 0.0


class Ahead:
    """The stocks of one server process; may be asked by any thread.

    Args:
        clock: seconds; any clock that only goes on.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._stocks: dict[Subjects, _Stock] = {}
        self._owed: defaultdict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
        """Requests and tokens by which counts are to be corrected, by subject and second."""

    def take(self, asked: Take) -> tuple[Take, Outcome] | None:
        """Let a request in from what was taken ahead, if there is enough of it."""
        with self._lock:
            stock = self._stocks.get(asked.subjects)
            now = self._clock()
            if (
                stock is None
                or now >= stock.ends
                or stock.requests < 1
                or stock.tokens < asked.tokens
            ):
                return None
            if _hold_places(asked.subjects):
                if not stock.places:
                    return None
                name = stock.places.pop()[0]
                asked = Take(name, asked.project, asked.subjects, asked.tokens)
            stock.requests -= 1
            stock.tokens -= asked.tokens
            stock.used = now
            at = stock.second + 1 - (stock.ends - now)
            return asked, Outcome(stock.second, at, [self._now(one, stock) for one in stock.seen])

    def _now(self, one: Seen, stock: _Stock) -> Seen:
        """How a subject stands, without what is still ahead."""
        (use,) = one.uses
        rest = Use(use.second, use.requests - stock.requests, use.tokens - stock.tokens)
        return Seen(one.subject, one.limits, [rest], one.running, one.tokens)

    def wanted(self, asked: Take) -> int:
        """For how many requests like this one the database should be asked, itself included."""
        with self._lock:
            stock = self._stocks.get(asked.subjects)
            if stock is None or not stock.seen:
                return 1
            return max(1, min(MOST, *(_spare(one, asked.tokens) for one in stock.seen)))

    def put(self, asked: Take, outcome: Outcome, began: float) -> None:
        """Keep what an answer of the database brought.

        Args:
            asked: as the database was asked.
            began: when, by the clock; before, so that no second is taken to be longer than it is.
        """
        with self._lock:
            stock = self._stocks.setdefault(asked.subjects, _Stock([]))
            stock.seen = [_whole(one) for one in outcome.seen]
            stock.used = self._clock()
            if outcome.second is None or asked.count == 1:
                return
            if stock.second != outcome.second:
                self._end_second(asked.subjects, stock)
                stock.second = outcome.second
            stock.ends = began + outcome.second + 1 - outcome.now
            stock.requests += asked.count - 1
            stock.tokens += (asked.count - 1) * asked.tokens
            if _hold_places(asked.subjects):
                stock.places += [(name, stock.used) for name in asked.places()[1:]]

    def settle(self, asked: Take, second: int, tokens: int, *, counts: bool) -> None:
        """A request that was let in from here has ended; its place is for another one."""
        with self._lock:
            self._correct(asked, second, 0 if counts else -1, tokens - asked.tokens)
            if _hold_places(asked.subjects):
                stock = self._stocks.setdefault(asked.subjects, _Stock([]))
                stock.places.append((asked.request, self._clock()))

    def sweep(self, *, last: bool = False) -> Returned:
        """What is to be given back by now; all of it, where it is the last time."""
        with self._lock:
            now = self._clock()
            places: list[Take] = []
            for subjects, stock in list(self._stocks.items()):
                if last or now >= stock.ends:
                    self._end_second(subjects, stock)
                kept = [(name, at) for name, at in stock.places if not last and now - at < IDLE_S]
                gone = stock.places[: len(stock.places) - len(kept)]  # the oldest lie first
                places += [Take(name, "", subjects) for name, _ in gone]
                stock.places = kept
                if now - stock.used > FORGET_S and not kept:
                    del self._stocks[subjects]
            return Returned(self._corrections(), places)

    def give_up(self, subjects: Subjects) -> Returned:
        """All that is held for somebody who would be refused otherwise."""
        with self._lock:
            stock = self._stocks.get(subjects)
            if stock is None:
                return Returned([], [])
            self._end_second(subjects, stock)
            places = [Take(name, "", subjects) for name, _ in stock.places]
            stock.places = []
            return Returned(self._corrections(), places)

    def _end_second(self, subjects: Subjects, stock: _Stock) -> None:
        if stock.requests or stock.tokens:
            self._correct(Take("", "", subjects), stock.second, -stock.requests, -stock.tokens)
        stock.requests = stock.tokens = 0
        stock.ends = 0.0

    def _correct(self, asked: Take, second: int, requests: int, tokens: int) -> None:
        for subject in asked.subjects:
            limited = subject.limits.tokens_per_minute is not None
            if requests or (limited and tokens):
                owed = self._owed[subject.id, second]
                owed[0] += requests
                owed[1] += tokens if limited else 0

    def _corrections(self) -> list[Correction]:
        owed, self._owed = self._owed, defaultdict(lambda: [0, 0])
        return [
            Correction(subject, second, requests, tokens)
            for (subject, second), (requests, tokens) in owed.items()
        ]


def _hold_places(subjects: Subjects) -> bool:
    for one in subjects:  # noqa: SIM110 - a generator costs more, and each request asks twice
        if one.limits.concurrent is not None:
            return True
    return False


def _whole(one: Seen) -> Seen:
    """A subject's window as one use, in its last second."""
    requests, tokens = (sum(use[part] for use in one.uses) for part in (1, 2))
    last = max((use.second for use in one.uses), default=0)
    return Seen(one.subject, one.limits, [Use(last, requests, tokens)], one.running, one.tokens)


def _spare(one: Seen, tokens: int) -> int:
    """For how many requests a subject has so much left that some may be taken ahead."""
    (use,) = one.uses
    limits = one.limits
    found = MOST
    if limits.requests_per_minute is not None:
        found = min(found, (limits.requests_per_minute - use.requests) // SHARE)
    if limits.tokens_per_minute is not None and tokens:
        found = min(found, (limits.tokens_per_minute - use.tokens) // SHARE // tokens)
    if limits.concurrent is not None:
        found = min(found, (limits.concurrent - one.running) // PLACES_SHARE)
    return found
