"""Counts what both sides of each canary answer, and lets rules end canaries."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from time import perf_counter
from typing import Protocol

from adapters.canaries import Key
from adapters.errors import AdapterError
from adapters.registry import Registry
from adapters.rules import Side
from service.record import Record
from service.telemetry import Metrics

logger = logging.getLogger("modiste.trials")

EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Tried:
    """Which side of which canary a request fell to."""

    key: Key
    started: datetime
    number: int


class CanaryView(Protocol):
    """What runs now, as `service.models` follows it."""

    def trials(self) -> Iterable[tuple[Key, datetime]]: ...


class Observer:
    """The counts of one server process."""

    def __init__(
        self, registry: Registry, server: str, canaries: CanaryView, metrics: Metrics
    ) -> None:
        self._registry, self._server, self._canaries = registry, server, canaries
        self._metrics = metrics
        self._sides: dict[tuple[Key, datetime], dict[int, Side]] = {}
        self._changed: set[tuple[Key, datetime]] = set()

    def observe(self, record: Record) -> None:
        """Count a finished request that a canary's alias got; not one whose caller went away."""
        tried = record.tried
        failed = record.status >= 500 or (record.failed and record.status < 400)
        if tried is None or not (failed or (record.answered and record.status < 400)):
            return
        trial = (tried.key, tried.started)
        side = self._sides.setdefault(trial, {}).setdefault(tried.number, Side())
        side.observe(perf_counter() - record.started, failed=failed)
        self._changed.add(trial)

    async def run(self) -> None:
        """For as long as the server runs."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.report()
            except AdapterError as error:
                logger.warning("canaries can't be judged: %s", error)

    async def report(self) -> None:
        """Hand the counts to the registry, where those of all servers meet the rules."""
        for trial in list(self._changed):
            self._changed.discard(trial)
            try:
                await asyncio.to_thread(self._hand_over, *trial)
            except AdapterError:
                self._changed.add(trial)
                raise
        running = set(self._canaries.trials())
        for ended in self._sides.keys() - running - self._changed:
            del self._sides[ended]

    def _hand_over(self, key: Key, started: datetime) -> None:
        sides = {number: replace(side) for number, side in self._sides[key, started].items()}
        self._registry.count(self._server, key, started, sides)
        verdict = self._registry.judge_canary(key)
        if verdict is not None:
            how = "promoted" if verdict.promote else "rolled_back"
            self._metrics.canaries_ended.labels(how).inc()
            logger.warning("the canary of %s@%s was %s: %s", *key, how, verdict.reason)
