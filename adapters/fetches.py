"""Versions that are brought here when they are needed, and leave when room is."""

import logging
import time

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
        states, leased = self._uses()
        for entry in cached:
            key = (entry.name, entry.digest)
            if excess <= 0 or time.time() - entry.used < RECENT_S:
                break
            if key in leased or key not in states:
                continue
            try:
                excess -= self.store.drop(entry, removed=states[key] == REMOVED)
            except StoreFailed as error:
                logger.warning("the cache can't be made smaller: %s", error)
                break

    def forget_unknown(self) -> int:
        """Remove from the cache what was erased through another home; returns how many versions.

        A local store keeps what the database doesn't know: that may be an older one, restored.
        """
        if not isinstance(self.store, CachedStore):
            return 0
        states, _ = self._uses()
        return self.store.keep_only(states.keys(), UNKNOWN_S)

    def _uses(self) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
        """States of all versions and which of them are leased, by adapter and digest."""
        with self._read() as session:
            rows = session.scalars(select(VersionRow)).all()
            held = session.scalars(select(LeaseRow).where(LeaseRow.until >= time.time())).all()
        leases = {(lease.adapter, lease.number) for lease in held}
        states = {(row.adapter, row.digest): row.state for row in rows}
        return states, {(r.adapter, r.digest) for r in rows if (r.adapter, r.number) in leases}
