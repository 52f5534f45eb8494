"""Whether the engine still works: known by what comes out of it, and asked for where nothing does.

Anything that comes out of it for anybody shows that it works, so a busy engine is never asked. One
that is silent is asked for a token, ahead of all requests: while a caller waits, after half the
patience; while nobody does, rarely, since an answer costs a second of a core (vLLM's worker
spins for so long after a step). It is stuck when all of the patience passes without anything.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from service.ending import Ending
from service.record import PRIORITY_WATCHDOG

logger = logging.getLogger("modiste.watchdog")

LOOK_S = 0.5
MOST_AT_ONCE_S = 2 * LOOK_S
"""A look that comes later was held up itself, which says nothing of the engine."""


class Pulse:
    """What goes into vLLM's engine and comes out of it, seen at the client.

    Attributes:
        beats: grows whenever tokens came out, or the KV cache's use changed: a long
            prompt fills it step by step before its first token.
        may_stop: whether an engine that goes away does as it was told.
    """

    def __init__(self, client: Any) -> None:
        self.beats = 0
        self.may_stop: Callable[[], bool] = lambda: False
        self._client, self._core = client, client.engine_core
        self._usage = 0.0
        self._next = self._core.get_output_async
        self._core.get_output_async = self._noted

    async def _noted(self) -> Any:
        try:
            outputs = await self._next()
        except Exception:
            if self.may_stop() and not self.asked:  # else vLLM tells whoever waits, and the log
                raise asyncio.CancelledError from None
            raise
        stats = outputs.scheduler_stats
        usage = self._usage if stats is None else stats.kv_cache_usage
        if outputs.outputs or usage != self._usage:
            self.beats, self._usage = self.beats + 1, usage
        return outputs

    @property
    def asked(self) -> bool:
        """Whether requests wait for something."""
        return bool(self._client.get_num_unfinished_requests())

    def last_words(self) -> str:
        """How the engine's process ended, as far as is known."""
        manager = getattr(self._core.resources, "engine_manager", None)
        codes = [one.exitcode for one in getattr(manager, "processes", ()) if one.exitcode]
        if not codes:
            return "the engine has failed"
        if codes[0] > 0:
            return f"the engine ended with {codes[0]}"
        return f"the engine was killed by signal {-codes[0]}"


class WatchedEngine(Protocol):
    """`service.engine.Engine`."""

    @property
    def dead(self) -> bool: ...
    @property
    def pulse(self) -> Pulse: ...
    async def probe(
        self, prompt_ids: list[int], token_ids: list[int], request: Any, *, priority: int
    ) -> list[float]: ...


class Watchdog:
    """Watches one engine; lets the server end when the engine has died.

    Args:
        interval_s: longest silence of an engine that nobody asks; 0: without end.
        patience_s: longest silence of one that is asked.

    Attributes:
        stuck: until something comes out of it again.
    """

    def __init__(
        self, engine: WatchedEngine, ending: Ending, interval_s: float, patience_s: float
    ) -> None:
        self._engine, self._ending = engine, ending
        self._interval_s, self._patience_s = interval_s, patience_s
        self._beats = 0
        self._silent_s = self._waited_s = 0.0
        self._question: asyncio.Task[None] | None = None
        self.stuck = False

    async def run(self) -> None:
        """Until the server ends."""
        last = monotonic()
        try:
            while not self._ending.begun:
                await asyncio.sleep(LOOK_S)
                now = monotonic()
                try:
                    self.look(now - last)
                except Exception:  # the loop must outlive any one failure
                    logger.exception("the engine is not watched")
                last = now
        finally:
            if self._question is not None:
                self._question.cancel()

    def look(self, elapsed_s: float) -> None:
        """Once more, so long after the last look."""
        if self._engine.dead and not self._ending.begun:
            self._ending.begin(self._engine.pulse.last_words())
            return
        if (beats := self._engine.pulse.beats) != self._beats:
            self._beats, self._silent_s, self._waited_s = beats, 0.0, 0.0
            if self.stuck:
                logger.warning("the engine works again")
            self.stuck = False
            return
        elapsed_s = min(elapsed_s, MOST_AT_ONCE_S)
        self._silent_s += elapsed_s
        # callers who give up on a stuck engine don't cure it
        self._waited_s += elapsed_s if self._engine.pulse.asked or self.stuck else -self._waited_s
        if self._waited_s >= self._patience_s and not self.stuck:
            self.stuck = True
            logger.error("the engine is stuck: nothing came out of it for %g s", self._waited_s)
        if self._is_due() and (self._question is None or self._question.done()):
            self._question = asyncio.create_task(self._ask())

    def _is_due(self) -> bool:
        idle = 0 < self._interval_s <= self._silent_s
        return idle or self.stuck or self._waited_s >= self._patience_s / 2

    async def _ask(self) -> None:
        try:
            await self._engine.probe([0], [0], None, priority=PRIORITY_WATCHDOG)
        except Exception as error:  # noqa: BLE001 - a dead engine is seen at the next look
            logger.warning("the engine gave no token: %s", error or type(error).__name__)
