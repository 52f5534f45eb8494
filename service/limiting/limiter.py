"""Who is refused for its limits: asked once a request, at the edge, before a route sees it.

Callers without a limit cost nothing. For others a thread makes one round trip to the database, and
the event loop goes on. While the database is away each server counts by itself: limits guard what
answers, so they must not end it.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from uuid import uuid4

from starlette.types import Message, Receive, Scope

from adapters.connect import COUNT_CONNECTIONS, Database, for_counts
from adapters.errors import AdapterError, StoreFailed
from service.errors import RateLimited
from service.keys import Keys
from service.limiting.estimate import ROUTES, may_use
from service.limiting.limits import NO_LIMITS, Defaults, Limits
from service.limiting.standing import Excess, Outcome, retry_after_s
from service.limiting.windows import HOLD_S, Subject, Take, Windows, in_memory
from service.projects import Projects
from service.record import PRIORITY_BATCH, RECORD, Record

logger = logging.getLogger("modiste.limits")

FOLLOW_S = 1.0
"""Within so long a limit that was changed takes effect."""
AWAY_S = 5.0
"""So long a database that could not be used is not asked again."""
_SWEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request that was let in, and where it was counted."""

    asked: Take
    outcome: Outcome
    windows: Windows


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
        self._held = 0
        self._unsettled: list[Callable[[], None]] = []
        self.refresh()

    def refresh(self) -> None:
        """Know the limits as they are now.

        Raises:
            StoreFailed: the database can't be read; what is known stays.
        """
        self._of_keys, self._of_projects = self._keys.limited(), self._projects.limited()

    async def admit(self, record: Record, scope: Scope, receive: Receive) -> Receive:
        """Let a request begin that is within its limits; what it reads its body from then on.

        Raises:
            RateLimited: it is over one.
            ServiceError: what reading its body raised.
        """
        subjects = self._subjects(record, of_batch=RECORD in scope)
        if not subjects:
            return receive
        body = b""
        if record.route in ROUTES and any(one.limits.tokens_per_minute for one in subjects):
            body, receive = await _whole(receive)
        asked = Take(uuid4().hex, record.project, subjects)
        taken = await self._take(asked, record.route, body)
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

    async def _take(self, asked: Take, route: str, body: bytes) -> _Taken:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._take_here, asked, route, body)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:  # what is counted meanwhile is given back
            future.add_done_callback(self._forget)
            raise

    def _take_here(self, asked: Take, route: str, body: bytes) -> _Taken:
        """In a thread."""
        if body:
            tokens = may_use(route, body, self._longest)
            asked = Take(asked.request, asked.project, asked.subjects, tokens)
        if monotonic() >= self._away_until:
            try:
                return _Taken(asked, self._shared.take(asked), self._shared)
            except StoreFailed as error:
                self._away_until = monotonic() + AWAY_S
                # the database may have it, and gone away before it said so
                self._unsettled.append(partial(self._shared.release, asked))
                logger.warning("limits are counted by this server alone: %s", error)
        return _Taken(asked, self._own.take(asked), self._own)

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
        if renew and self._held:
            self._shared.renew()
        if sweep and (self._of_keys or self._of_projects or self._defaults):
            self._shared.sweep()
            self._own.sweep()

    def _leave(self) -> None:
        try:
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
