"""Leases: what running servers use, so that nothing of it is collected.

A server that is killed leaves its leases behind; they run out.
"""

import time
from collections.abc import Iterable

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adapters.database import LeaseRow
from adapters.names import Reference
from adapters.records import READY, Records, Version, check_ready

WANTED_S = 3600.0
"""How long what an ended server used counts as wanted; then its leases are forgotten."""

LEASE_S = 60.0
"""How long a lease holds; servers renew theirs three times as often."""


class Leases(Records):
    """The leases of all servers on one database."""

    def lease(self, server: str, version: Version) -> None:
        """Take a version into use; from here on it is not collected.

        Raises:
            Quarantined, Removed: it came too late.
        """
        with self._write() as session:
            row = self._row(session, Reference(version.name, number=version.number))
            check_ready(self._version(row))
            _lease(session, server, version)

    def renew(self, server: str, versions: Iterable[Version]) -> None:
        """Hold on to these versions, and to no others."""
        with self._write() as session:
            forgotten = LeaseRow.until < time.time() - WANTED_S
            session.execute(delete(LeaseRow).where((LeaseRow.server == server) | forgotten))
            for version in versions:
                _lease(session, server, version)

    def wanted(self, server: str) -> list[Version]:
        """What other servers use, or ended servers used within the hour, the latest first."""
        since = time.time() - WANTED_S
        query = (
            select(LeaseRow.adapter, LeaseRow.number)
            .where(LeaseRow.server != server, LeaseRow.until > since)
            .group_by(LeaseRow.adapter, LeaseRow.number)
            .order_by(func.max(LeaseRow.until).desc())
        )
        with self._read() as session:
            found = [
                self._version(self._row(session, Reference(name, number=number)))
                for name, number in session.execute(query)
            ]
        return [version for version in found if version.state == READY]


def _lease(session: Session, server: str, version: Version) -> None:
    until = time.time() + LEASE_S
    session.merge(LeaseRow(server=server, adapter=version.name, number=version.number, until=until))
