"""How a caller stands to its limits: what is left, when it comes back, how long to wait."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from service.limiting.limits import Limits

WINDOW_S = 60
LONGEST_RETRY_S = 60
"""OpenAI's client heeds no longer one; a window of whole seconds may end up to one later."""


KINDS = ("batches of key", "batches of project", "key", "project")
"""How subjects begin; a name follows."""
NAMES = {
    "requests in a minute": "requests_per_minute", "tokens in a minute": "tokens_per_minute",
    "requests at once": "concurrent",
}  # fmt: skip


class Use(NamedTuple):
    """What was used in a second."""

    second: int
    requests: int
    tokens: int


class Meter(NamedTuple):
    """One limit: how much of it is left, and when all of it is."""

    limit: int
    remaining: int
    reset_s: float


class Excess(NamedTuple):
    """A limit that a request is over, and when it would not be."""

    subject: str
    what: str
    limit: int
    used: int
    wait_s: float

    @property
    def of(self) -> str:
        """Whose it is, without the name: `key`, `project`, `batches of key`, …"""
        return next(kind for kind in KINDS if self.subject.startswith(f"{kind} "))

    @property
    def limit_name(self) -> str:
        """As the settings name it."""
        return NAMES[self.what]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a key or project used within the window.

    Attributes:
        uses: by rising seconds.
        running: requests at once.
        tokens: that the request at hand reserves.
    """

    subject: str
    limits: Limits
    uses: Sequence[Use]
    running: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a request was let in, and how its key and project stand then.

    Attributes:
        second: in which it was counted; None: it was not let in.
        now: when, by the database's clock.
    """

    second: int | None
    now: float
    seen: Sequence[Seen]

    @property
    def admitted(self) -> bool:
        return self.second is not None

    def excess(self) -> Excess:
        """The limit that holds a refused request up the longest."""
        found = [excess for one in self.seen for excess in self._excesses(one)]
        if not found:  # a second has ended since
            one = self.seen[0]
            found = [
                Excess(one.subject, what, limit, limit, 0.0)
                for what, limit in _named(one.limits)
                if limit is not None
            ][:1]
        return max(found, key=lambda excess: excess.wait_s)

    def headers(self) -> list[tuple[str, str]]:
        """OpenAI's `x-ratelimit-*`: of requests and of tokens the limit with the least left."""
        requests = [meter for one in self.seen if (meter := self._requests(one)) is not None]
        tokens = [meter for one in self.seen if (meter := self._tokens(one)) is not None]
        found: list[tuple[str, str]] = []
        for name, meters in (("requests", requests), ("tokens", tokens)):
            if meters:
                least = min(meters, key=lambda meter: (meter.remaining, meter.limit))
                found += [
                    (f"x-ratelimit-limit-{name}", str(least.limit)),
                    (f"x-ratelimit-remaining-{name}", str(least.remaining)),
                    (f"x-ratelimit-reset-{name}", span(least.reset_s)),
                ]
        return found

    def _requests(self, one: Seen) -> Meter | None:
        return self._left(one.limits.requests_per_minute, one.uses, 1)

    def _tokens(self, one: Seen) -> Meter | None:
        return self._left(one.limits.tokens_per_minute, one.uses, 2)

    def _left(self, limit: int | None, uses: Sequence[Use], part: int) -> Meter | None:
        """part: of a use, what the limit is of."""
        if limit is None:
            return None
        used, last = 0, None
        for use in uses:
            used += use[part]
            last = use.second if use[part] > 0 else last
        return self._meter(limit, used, last)

    def _meter(self, limit: int, used: int, last: int | None) -> Meter:
        reset_s = 0.0 if last is None else max(0.0, _gone(last) - self.now)
        return Meter(limit, max(0, limit - used), reset_s)

    def _excesses(self, one: Seen) -> list[Excess]:
        found = []
        (requests, most_requests), (tokens, most_tokens), (at_once, most) = _named(one.limits)
        for what, limit, needed, count in (
            (requests, most_requests, 1, lambda use: use.requests),
            (tokens, most_tokens, one.tokens, lambda use: use.tokens),
        ):
            used = sum(map(count, one.uses))
            if limit is not None and used + needed > limit:
                wait_s = self._wait(one, limit - needed, count)
                found.append(Excess(one.subject, what, limit, used, wait_s))
        if most is not None and one.running >= most:
            found.append(Excess(one.subject, at_once, most, one.running, 1.0))
        return found

    def _wait(self, one: Seen, most: int, count: Callable[[Use], int]) -> float:
        """Until no more than `most` is used."""
        used = sum(map(count, one.uses))
        for use in one.uses:
            used -= count(use)
            if used <= most:
                return max(0.0, _gone(use.second) - self.now)
        return float(WINDOW_S)


def _named(limits: Limits) -> tuple[tuple[str, int | None], ...]:
    return tuple((what, getattr(limits, name)) for what, name in NAMES.items())


def retry_after_s(wait_s: float) -> int:
    """Whole seconds, for `Retry-After`."""
    return min(LONGEST_RETRY_S, max(1, ceil(wait_s)))


def span(seconds: float) -> str:
    """As OpenAI writes spans of time: 20ms, 1s, 1m0s, 6m0s."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _gone(second: int) -> int:
    """When what was used in a second counts no more."""
    return second + WINDOW_S + 1
