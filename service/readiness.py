"""What probes are told: whether this server should get requests, and whether to start it again."""

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

from adapters.errors import AdapterError
from adapters.registry import Registry
from service.ending import Ending
from service.errors import EngineStopped, NotReady
from service.settings import Settings
from service.watchdog import Watchdog, WatchedEngine

logger = logging.getLogger("modiste.readiness")

ASK_S = 5.0
AWAY_S = 3 * ASK_S
"""An answer may take its time; one that is so late counts as none."""


class Part(Protocol):
    """What is ready once, and then for ever: `service.models.Models`, `service.warming.Warming`."""

    @property
    def ready(self) -> bool: ...


class DatabaseReach:
    """Since when the database has not answered; asked beside the probes, which must not wait."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._answered = registry, monotonic()

    async def follow(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._registry.revision)
                self._answered = monotonic()
            except AdapterError:
                pass  # whoever needs it tells the log
            except Exception:  # the loop must outlive any one failure
                logger.exception("the database can't be asked")
            await asyncio.sleep(ASK_S)

    @property
    def away_s(self) -> float:
        """Seconds since its last answer; 0 while it answers."""
        silent_s = monotonic() - self._answered
        return silent_s if silent_s > AWAY_S else 0.0


class Readiness:
    """The state of one server.

    Args:
        parts: what has to be ready once, by what is told until then.
        patience_s: how long the server counts as ready without its database.
    """

    def __init__(
        self, watchdog: Watchdog, engine: WatchedEngine, parts: Mapping[str, Part], ending: Ending,
        database: DatabaseReach, patience_s: float,
    ) -> None:  # fmt: skip
        self._watchdog, self._engine, self._parts = watchdog, engine, parts
        self._ending, self.database, self._patience_s = ending, database, patience_s

    @classmethod
    def of(
        cls, settings: Settings, registry: Registry, engine: WatchedEngine,
        parts: Mapping[str, Part], ending: Ending,
    ) -> "Readiness":  # fmt: skip
        watchdog = Watchdog(
            engine, ending, settings.watchdog_interval_s, settings.watchdog_patience_s
        )
        reach = DatabaseReach(registry)
        return cls(watchdog, engine, parts, ending, reach, settings.database_patience_s)

    async def follow(self) -> None:
        """For as long as the server runs."""
        await asyncio.gather(self._watchdog.run(), self.database.follow())

    @property
    def ready(self) -> bool:
        """As `check` says."""
        try:
            self.check()
        except NotReady:
            return False
        return True

    def check_live(self) -> None:
        """Raises NotReady where only another start helps."""
        if self._ending.begun and not self._ending.outcome.failure:
            return  # its engine stops, as it should
        if self._engine.dead:
            raise EngineStopped
        if self._watchdog.stuck:
            raise NotReady(
                "the engine is stuck: no token comes out of it", code="engine_stuck",
                hint="restart the server; if a step takes longer, raise watchdog_patience_s",
            )  # fmt: skip

    def check(self) -> None:
        """Raises NotReady where requests should go elsewhere."""
        if self._ending.begun:
            raise NotReady("the server is shutting down", code="shutting_down")
        self.check_live()
        for what, part in self._parts.items():
            if not part.ready:
                raise NotReady(what, hint="wait")
        if (away_s := self.database.away_s) > self._patience_s:
            raise NotReady(
                f"the database has not answered for {away_s:.0f} s", code="database_away",
                hint="see that it runs and can be reached, or raise database_patience_s",
            )  # fmt: skip
