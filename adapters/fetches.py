"""Versions that are brought here when they are needed, and leave when room is."""

import logging
import time
from collections.abc import Collection

from sqlalchemy import select

from adapters.cached import CachedStore
from adapters.database import LeaseRow, VersionRow
from adapters.errors import StoreFailed
from adapters.records import REMOVED, Records, Version

logger = logging.getLogger("modiste.store")

RECENT_S = 60.0
"""What was asked for since then may be about to be read, or leased."""
UNKNOWN_S = 3600.0
"""What the database doesn't know for so long is not about to be published."""
LOOKED_UP = 500
"""Versions of the cache that are looked up at once for one that may leave."""


class Fetches(Records):
    """The cache of a remote store; a local store is always whole."""

    def fetch(self, version: Version) -> None:
        """Have every file of a version in its folder, checked against its digest now.

        A remote store's version is fetched first, as far as it isn't in the cache; the least
        recently used versions make room for it.

        Raises:
            StoreFailed: a file can't be read or fetched, or the disk is full.
            DigestMismatch: a file was altered.
        """
        if self.store.remote is not None:
            self.make_room(self.store.missing(version.manifest))
        self.store.verify(version.manifest)

    def make_room(self, needed: int) -> None:
        """Keep the cache below `store_cache_gib` with this many bytes more.

        What a running server has leased stays, and what is being read; so does what the remote
        store lacks.
        """
        if self.store.remote is None:
            return
        cached = self.store.cached()
        excess = sum(entry.size for entry in cached) + needed - self.home.store_cache_bytes
        if excess <= 0:
            return
        for start in range(0, len(cached), LOOKED_UP):
            # not every version that there is: a full cache makes room at each load
            part = cached[start : start + LOOKED_UP]
            states, leased = self._uses({entry.name for entry in part})
            for entry in part:
                key = (entry.name, entry.digest)
                if excess <= 0 or time.time() - entry.used < RECENT_S:
                    return
                if key in leased or key not in states:
                    continue
                try:
                    excess -= self.store.drop(entry, removed=states[key] == REMOVED)
                except StoreFailed as error:
                    logger.warning("the cache can't be made smaller: %s", error)
                    return

    def forget_unknown(self) -> int:
        """Remove from the cache what was erased through another home; returns how many versions.

        A local store keeps what the database doesn't know: that may be an older one, restored.
        """
        if not isinstance(self.store, CachedStore):
            return 0
        states, _ = self._uses()
        return self.store.keep_only(states.keys(), UNKNOWN_S)

    def _uses(
        self, names: Collection[str] | None = None
    ) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
        """States of versions and which of them are leased, by adapter and digest.

        Args:
            names: of these adapters; None: of all.
        """
        versions = select(VersionRow)
        leased = select(LeaseRow).where(LeaseRow.until >= time.time())
        if names is not None:
            versions = versions.where(VersionRow.adapter.in_(names))
            leased = leased.where(LeaseRow.adapter.in_(names))
        with self._read() as session:
            rows = session.scalars(versions).all()
            held = session.scalars(leased).all()
        leases = {(lease.adapter, lease.number) for lease in held}
        states = {(row.adapter, row.digest): row.state for row in rows}
        return states, {(r.adapter, r.digest) for r in rows if (r.adapter, r.number) in leases}
