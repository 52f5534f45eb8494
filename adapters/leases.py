"""Leases: what running servers use, so that nothing of it is collected.

A server that is killed leaves its leases behind; they run out.
"""

import time
from collections.abc import Iterable

from sqlalchemy import delete
from sqlalchemy.orm import Session

from adapters.database import LeaseRow
from adapters.names import Reference
from adapters.records import Records, Version, check_ready

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
            session.execute(delete(LeaseRow).where(LeaseRow.server == server))
            for version in versions:
                _lease(session, server, version)


def _lease(session: Session, server: str, version: Version) -> None:
    until = time.time() + LEASE_S
    session.merge(LeaseRow(server=server, adapter=version.name, number=version.number, until=until))
