"""Leases: what running servers use, so that nothing of it is collected, and what they take.

A server that is killed leaves its rows behind; they run out.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from adapters.compatibility import Takes
from adapters.database import LeaseRow, ServerRow, VersionRow
from adapters.errors import IncompatibleAdapter
from adapters.names import Reference
from adapters.records import READY, RETIRED, Records, Version, check_ready

WANTED_S = 3600.0
"""How long what an ended server used counts as wanted; then its leases are forgotten."""

LEASE_S = 60.0
"""How long a lease holds; servers renew theirs three times as often."""


class Leases(Records):
    """The leases of all servers on one database."""

    def lease(self, server: str, version: Version) -> None:
        """Take a version into use; from here on it is not collected.

        Raises:
            Quarantined, Retired, Removed: it came too late.
        """
        with self._write() as session:
            row = self._row(session, Reference(version.name, number=version.number))
            check_ready(self._version(row))
            session.merge(LeaseRow(**_values(server, version)))

    def renew(self, server: str, versions: Iterable[Version]) -> None:
        """Hold on to these versions, and to no others."""
        with self._write() as session:
            forgotten = LeaseRow.until < time.time() - WANTED_S
            session.execute(delete(LeaseRow).where((LeaseRow.server == server) | forgotten))
            # all at once: every other write waits for this one
            if rows := [_values(server, version) for version in versions]:
                session.execute(insert(LeaseRow), rows)

    def out_of_use(self, versions: Sequence[Version]) -> list[Version]:
        """Those that were retired, or are not known any more."""
        names = {version.name for version in versions}
        query = select(VersionRow).where(VersionRow.adapter.in_(names), VersionRow.state != RETIRED)
        with self._read() as session:
            known = {(row.adapter, row.number) for row in session.scalars(query)}
        return [version for version in versions if (version.name, version.number) not in known]

    def wanted(self, server: str, most: int | None = None) -> list[Version]:
        """What other servers use, or ended servers used within the hour, the latest first.

        Args:
            most: no more than so many; None: all.
        """
        since = time.time() - WANTED_S
        same = (LeaseRow.adapter == VersionRow.adapter) & (LeaseRow.number == VersionRow.number)
        query = (
            select(VersionRow)
            .join(LeaseRow, same)
            .where(LeaseRow.server != server, LeaseRow.until > since, VersionRow.state == READY)
            .group_by(VersionRow.id)
            .order_by(func.max(LeaseRow.until).desc())
            .limit(most)
        )
        with self._read() as session:
            return [self._version(row) for row in session.scalars(query)]

    def announce(self, server: str, takes: Takes) -> None:
        """Say what a server takes, for as long as a lease holds; servers that ran out go."""
        now = time.time()
        with self._write() as session:
            session.execute(delete(ServerRow).where(ServerRow.until < now))
            session.merge(
                ServerRow(
                    server=server, base=takes.base.fingerprint, until=now + LEASE_S,
                    limits=takes.model_dump(mode="json"),
                )
            )  # fmt: skip

    def withdraw(self, server: str) -> None:
        """A server ends: nothing has to fit it any more."""
        with self._write() as session:
            session.execute(delete(ServerRow).where(ServerRow.server == server))

    def misfits(self, version: Version) -> list[str]:
        """Running servers of a version's base that can't take it, each with the remedy."""
        with self._read() as session:
            return [f"{problem}: {remedy}" for problem, remedy in misfits(session, version)]


def misfits(session: Session, version: Version) -> list[tuple[str, str]]:
    """As `Leases.misfits`, inside a transaction: (problem, remedy) for each server."""
    found = []
    running = select(ServerRow).where(ServerRow.until >= time.time()).order_by(ServerRow.server)
    for row in session.scalars(running):
        takes = Takes.model_validate(row.limits)
        misfit = takes.misfit(version.manifest) if takes.serves_base_of(version.manifest) else None
        if misfit is not None:
            problem, remedy = misfit
            server = f"{row.server} (process {takes.process})"
            found.append(
                (
                    f"the running server {server} can't take {version.reference}: {problem}",
                    f"restart it with {remedy}",
                )
            )
    return found


def check_servers(session: Session, version: Version) -> None:
    """Before an alias or a canary sends requests to a version: can all running servers take it?

    Raises:
        IncompatibleAdapter: names each server of its base that can't, and the remedy.
    """
    if found := misfits(session, version):
        problems, remedies = zip(*found, strict=True)
        raise IncompatibleAdapter(
            "; ".join(problems),
            hint=f"{', '.join(dict.fromkeys(remedies))}; or force it: such a server keeps "
            "answering with the version before",
            param="version",
        )


def _values(server: str, version: Version) -> dict[str, Any]:
    until = time.time() + LEASE_S
    return {"server": server, "adapter": version.name, "number": version.number, "until": until}
