"""Who is refused for its limits: asked once a request, at the edge, before a route sees it.

Callers without a limit cost nothing. Others are let in from what was taken ahead for them, where
much is left of their limits; else a thread makes one round trip to the database, and the event loop
goes on. While the database is away each server counts by itself: limits guard what
answers, so they must not end it.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from time import monotonic

from starlette.types import Message, Receive, Scope

from adapters.connect import COUNT_CONNECTIONS, Database, for_counts
from adapters.errors import AdapterError, StoreFailed
from service.body import parse_once
from service.errors import RateLimited
from service.keys import Keys
from service.limiting.ahead import Ahead
from service.limiting.estimate import ROUTES, may_use
from service.limiting.limits import NO_LIMITS, Defaults, Limits
from service.limiting.standing import Excess, Outcome, retry_after_s
from service.limiting.windows import HOLD_S, Returned, Subject, Take, Windows, in_memory
from service.projects import Projects
from service.record import PRIORITY_BATCH, RECORD, Record

logger = logging.getLogger("modiste.limits")

FOLLOW_S = 1.0
"""Within so long a limit that was changed takes effect."""
AWAY_S = 5.0
"""So long a database that could not be used is not asked again."""
_SWEEP_S = 60.0
MOST_FOUND = 10_000
"""Callers whose limits are kept between two looks."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request that was let in, and where it was counted.

    Attributes:
        ahead: it is one of several that were counted at once.
    """

    asked: Take
    outcome: Outcome
    windows: Windows
    ahead: bool = False


class Limiter:
    """The limits of one server process.

    Args:
        longest: prompt and answer together, tokens.
        server: its name, of which there is no other.
        limited: told of each refusal: for which limit, and whose it is.

    Raises:
        StoreFailed: the database can't be read.
    """

    def __init__(
        self, database: Database, defaults: Defaults, longest: int, server: str,
        limited: Callable[[str, str], None] = lambda _limit, _of: None,
    ) -> None:  # fmt: skip
        self._keys, self._projects = Keys(database), Projects(database)
        self._defaults, self._longest = defaults, longest
        engine = for_counts(database.engine.url)
        self._shared, self._own = Windows(engine, server), Windows(in_memory(), server)
        many = COUNT_CONNECTIONS if engine.dialect.name == "postgresql" else 1
        self._limited = limited
        self._threads = ThreadPoolExecutor(many, "modiste-limits")
        self._away_until = 0.0
        self._ahead = Ahead()
        self._asking: dict[tuple[Subject, ...], asyncio.Future[_Taken]] = {}
        """The last question to the database for a caller, while it is not answered."""
        self._found: dict[tuple[str, str, bool], tuple[Subject, ...]] = {}
        """Whose limits hold, by caller and project, until it is looked up again."""
        self._server, self._numbers = server, count()
        self._held = 0
        self._unsettled: list[Callable[[], None]] = []
        self.refresh()

    def refresh(self) -> None:
        """Know the limits as they are now.

        Raises:
            StoreFailed: the database can't be read; what is known stays.
        """
        self._of_keys, self._of_projects = self._keys.limited(), self._projects.limited()
        self._found = {}

    async def admit(self, record: Record, scope: Scope, receive: Receive) -> Receive:
        """Let a request begin that is within its limits; what it reads its body from then on.

        Raises:
            RateLimited: it is over one.
            ServiceError: what reading its body raised.
        """
        subjects = self._subjects(record, of_batch=RECORD in scope)
        if not subjects:
            return receive
        tokens = 0
        if record.route in ROUTES and any(one.limits.tokens_per_minute for one in subjects):
            body, receive = await _whole(receive)
            tokens = may_use(record.route, parse_once(scope, body), len(body), self._longest)
        name = f"{self._server}-{next(self._numbers)}"
        asked = Take(name, record.project, subjects, tokens)
        taken = await self._take(asked)
        record.headers += taken.outcome.headers()
        if not taken.outcome.admitted:
            over = taken.outcome.excess()
            self._limited(over.limit_name, over.of)
            raise _refusal(over)
        self._held += 1
        record.on_end.append(partial(self._end, taken, record))
        return receive

    async def run(self) -> None:
        """For as long as the server runs: follow changes, keep places, settle what is late."""
        loop = asyncio.get_running_loop()
        renewed = swept = monotonic()
        try:
            while True:
                await asyncio.sleep(FOLLOW_S)
                now = monotonic()
                renew, sweep = now - renewed >= HOLD_S / 3, now - swept >= _SWEEP_S
                try:
                    await asyncio.to_thread(self.refresh)
                    await loop.run_in_executor(self._threads, self._tend, renew, sweep)
                except AdapterError as error:
                    logger.warning("limits are not followed: %s", error)
                    continue
                except Exception:  # the loop must outlive any one failure
                    logger.exception("limits are not followed")
                    continue
                renewed, swept = now if renew else renewed, now if sweep else swept
        finally:
            self._threads.submit(self._leave)

    def _subjects(self, record: Record, *, of_batch: bool) -> tuple[Subject, ...]:
        """Whose limits hold for a request.

        Lines of batches have the same ones again beside those of requests: they wait, and would
        leave a caller nothing for requests. How many run at once is the server's own choice.
        """
        known, key = self._found, (record.caller, record.project, of_batch)
        if (found := known.get(key)) is None:
            found = self._look_up(record, of_batch=of_batch)
            if len(known) < MOST_FOUND:
                known[key] = found
        return found

    def _look_up(self, record: Record, *, of_batch: bool) -> tuple[Subject, ...]:
        pairs = (
            ("key", record.caller, self._of_keys, self._defaults.key),
            ("project", record.project, self._of_projects, self._defaults.project),
        )
        found = []
        for kind, name, known, default in pairs:
            limits = known.get(name, NO_LIMITS).above(default)
            if of_batch:
                limits = Limits(limits.requests_per_minute, limits.tokens_per_minute)
                kind = f"batches of {kind}"  # noqa: PLW2901
            if limits:
                found.append(Subject(f"{kind} {name}", limits))
        return tuple(found)

    async def _take(self, asked: Take) -> _Taken:
        if (taken := self._take_ahead(asked)) is not None:
            return taken
        pending = self._asking.get(asked.subjects)
        if pending is not None and self._ahead.wanted(asked) > 1:
            await asyncio.wait([pending])  # it may bring enough for both, without a thread's turn
            if (taken := self._take_ahead(asked)) is not None:
                return taken
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._take_here, asked)
        self._asking[asked.subjects] = future
        future.add_done_callback(partial(self._answered, asked.subjects))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:  # what is counted meanwhile is given back
            future.add_done_callback(self._forget)
            raise

    def _answered(self, subjects: tuple[Subject, ...], future: "asyncio.Future[_Taken]") -> None:
        if self._asking.get(subjects) is future:
            del self._asking[subjects]

    def _take_ahead(self, asked: Take) -> _Taken | None:
        found = self._ahead.take(asked)
        return None if found is None else _Taken(*found, self._shared, ahead=True)

    def _take_here(self, asked: Take) -> _Taken:
        """In a thread."""
        if (taken := self._take_ahead(asked)) is not None:
            return taken  # whoever was before it has brought enough for both
        if monotonic() >= self._away_until:
            try:
                return self._take_shared(asked)
            except StoreFailed as error:
                self._away_until = monotonic() + AWAY_S
                logger.warning("limits are counted by this server alone: %s", error)
        return _Taken(asked, self._own.take(asked), self._own)

    def _take_shared(self, asked: Take) -> _Taken:
        """In a thread. Raises StoreFailed."""
        began = monotonic()
        several = replace(asked, count=self._ahead.wanted(asked))
        outcome = self._ask(several)
        if not outcome.admitted:
            # what this server holds ahead may be what is missing
            returned = self._ahead.give_up(asked.subjects)
            self._give_back(returned)
            if returned or several.count > 1:
                began, several = monotonic(), asked
                outcome = self._ask(asked)
        self._ahead.put(several, outcome, began)
        return _Taken(asked, outcome, self._shared, ahead=several.count > 1)

    def _ask(self, asked: Take) -> Outcome:
        """In a thread. Raises StoreFailed."""
        try:
            return self._shared.take(asked)
        except StoreFailed:
            # the database may have counted it, and gone away before it said so
            held = Returned([], [replace(asked, request=place) for place in asked.places()])
            self._unsettled.append(partial(self._shared.give_back, held))
            raise

    def _give_back(self, returned: Returned) -> None:
        """In a thread. Raises StoreFailed: it is given back later."""
        try:
            self._shared.give_back(returned)
        except StoreFailed:
            self._unsettled.append(partial(self._shared.give_back, returned))
            raise

    def _forget(self, future: "asyncio.Future[_Taken]") -> None:
        if not future.cancelled() and future.exception() is None:
            taken = future.result()
            if taken.outcome.admitted:
                self._settle(taken, 0, counts=False)

    def _end(self, taken: _Taken, record: Record) -> None:
        self._held -= 1
        tokens = record.prompt_tokens + record.completion_tokens
        again = record.again or (record.aborted and record.priority == PRIORITY_BATCH)
        self._settle(taken, 0 if record.model is None else tokens, counts=not again)

    def _settle(self, taken: _Taken, tokens: int, *, counts: bool) -> None:
        if taken.ahead:
            self._ahead.settle(taken.asked, taken.outcome.second or 0, tokens, counts=counts)
            return

        def settle() -> None:
            taken.windows.settle(taken.asked, taken.outcome, tokens, counts=counts)

        def now_or_later() -> None:
            try:
                settle()
            except AdapterError:
                self._unsettled.append(settle)

        self._threads.submit(now_or_later)

    def _tend(self, renew: bool, sweep: bool) -> None:
        """In a thread."""
        if monotonic() < self._away_until:
            return
        late, self._unsettled = self._unsettled, []
        while late:
            try:
                late[-1]()
            except AdapterError:
                self._unsettled += late
                raise
            late.pop()
        if returned := self._ahead.sweep():
            self._give_back(returned)
        if renew and self._held:
            self._shared.renew()
        if sweep and (self._of_keys or self._of_projects or self._defaults):
            self._shared.sweep()
            self._own.sweep()

    def _leave(self) -> None:
        try:
            self._shared.give_back(self._ahead.sweep(last=True))
            self._shared.leave()
        except AdapterError as error:
            logger.warning("places of requests run out by themselves: %s", error)


def _refusal(over: Excess) -> RateLimited:
    wait_s = retry_after_s(over.wait_s)
    return RateLimited(
        f"{over.subject} may have {over.limit} {over.what}, and {over.used} are taken; "
        f"try again in {wait_s} s",
        retry_after_s=wait_s,
        hint="wait as long as Retry-After says, or ask the operator for a higher limit "
        "(`modiste keys limit`, `modiste projects limit`)",
    )


async def _whole(receive: Receive) -> tuple[bytes, Receive]:
    """A body, and what gives it once more."""
    pieces = bytearray()
    messages: list[Message] = []
    more = True
    while more:
        message = await receive()
        messages.append(message)
        pieces += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    if messages[-1]["type"] == "http.request":
        messages = [{"type": "http.request", "body": bytes(pieces), "more_body": False}]

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return bytes(pieces), again
