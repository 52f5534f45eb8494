"""Versions that are loaded before a request asks for them."""

import asyncio
import logging

from adapters.errors import AdapterError
from adapters.leases import LEASE_S
from adapters.registry import Registry
from service.errors import ServiceError
from service.residency import Residency
from service.telemetry import Metrics

logger = logging.getLogger("modiste.demand")

PASSED_OVER = 100
"""Of versions that can't be loaded here, such as another base's, so many hide no others."""


class Demand:
    """Loads what other servers use, or this one's predecessor used, while there are places."""

    def __init__(self, registry: Registry, residency: Residency, metrics: Metrics) -> None:
        self._registry, self._residency, self._metrics = registry, residency, metrics

    async def preload(self, most: int | None = None) -> int:
        """Load what is wanted, `most` versions at most; returns how many were loaded."""
        loaded, free = 0, self._residency.free_places()
        if free <= 0:
            return 0
        server, here = self._residency.leasing.server, len(self._residency.digests())
        # among so many are as many as there are places for, whatever is loaded already
        most_wanted = here + free + PASSED_OVER
        for version in await asyncio.to_thread(self._registry.wanted, server, most_wanted):
            if self._residency.free_places() <= 0 or loaded == most:
                break
            if version.digest in self._residency.digests():
                continue
            try:
                await self._residency.ensure(version)
            except (AdapterError, ServiceError) as error:
                logger.warning("%s is not loaded ahead: %s", version.reference, error)
                continue
            loaded += 1
        self._metrics.preloads.inc(loaded)
        return loaded

    async def follow(self, ready: asyncio.Event) -> None:
        """For as long as the server runs: all that is wanted once it is ready, then bit by bit."""
        await ready.wait()  # what aliases point at comes first
        most = None
        while True:
            try:
                await self.preload(most)
            except AdapterError as error:
                logger.warning("what is wanted can't be read: %s", error)
            await asyncio.sleep(LEASE_S / 3)
            most = 1
