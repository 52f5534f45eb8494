"""What this server takes and holds, told to the registry: so that nothing of it is collected."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from socket import gethostname
from time import monotonic
from uuid import uuid4

from adapters.compatibility import Takes
from adapters.errors import AdapterError
from adapters.leases import LEASE_S
from adapters.registry import Registry, Version

logger = logging.getLogger("modiste.leasing")

RECENT_S = 600.0
"""How long a version that made room for another keeps its lease: it may come back."""


class Leasing:
    """The leases of one server process."""

    def __init__(self, registry: Registry, takes: Takes) -> None:
        self.server = f"{gethostname()}-{uuid4().hex[:12]}"
        self.takes = takes
        self._registry = registry
        self._held: dict[str, tuple[Version, float]] = {}
        """By digest: the version, and when it was last loaded or unloaded."""

    async def take(self, version: Version) -> None:
        """From here on a version is not collected. A leased one costs nothing.

        Raises:
            Quarantined, Removed: it came too late.
            StoreFailed: the database can't be used.
        """
        known = version.digest in self._held
        self._held[version.digest] = version, monotonic()
        if not known:
            await asyncio.to_thread(self._registry.lease, self.server, version)

    def used(self, version: Version) -> None:
        """A version leaves the engine; its lease stays for a while."""
        self._held[version.digest] = version, monotonic()

    def give_up(self, version: Version) -> None:
        """A version could not be loaded."""
        self._held.pop(version.digest, None)

    def held(self) -> list[Version]:
        """What this server holds."""
        return [version for version, _ in self._held.values()]

    async def keep(self, loaded: Callable[[], Iterable[str]]) -> None:
        """For as long as the server runs: what it takes is known, what it holds not collected.

        Args:
            loaded: digests of what the engine has.
        """
        try:
            while True:
                try:
                    await asyncio.to_thread(self._registry.announce, self.server, self.takes)
                    await asyncio.sleep(LEASE_S / 3)
                    held = self._still_held(set(loaded()))
                    await asyncio.to_thread(self._registry.renew, self.server, held)
                except AdapterError as error:
                    logger.warning("leases can't be renewed: %s", error)
                    await asyncio.sleep(LEASE_S / 6)
                except Exception:  # the loop must outlive any one failure
                    logger.exception("leases are not renewed")
                    await asyncio.sleep(LEASE_S / 6)
        finally:
            with suppress(AdapterError):
                await asyncio.to_thread(self._registry.withdraw, self.server)

    def _still_held(self, loaded: set[str]) -> list[Version]:
        since = monotonic() - RECENT_S
        self._held = {
            digest: (version, used)
            for digest, (version, used) in self._held.items()
            if used > since or digest in loaded
        }
        return [version for version, _ in self._held.values()]
