"""Erasure: all adapters of a project go, with every file of every version.

First no name points at them any more, and servers let go of what they hold; then their files go,
then their rows, so that a kill between any two leaves rows by which the next call goes on.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from adapters.database import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    CanaryCountRow,
    CanaryRow,
    LeaseRow,
    ScoreRow,
    VersionRow,
)
from adapters.garbage import Collected, Garbage
from adapters.records import REMOVED, RETIRED

_POINTERS: tuple[Any, ...] = (AliasRow, CanaryRow, CanaryCountRow)
"""Tables by which a name leads to a version."""
_OF_VERSIONS: tuple[Any, ...] = (LeaseRow, ScoreRow)


class Erasure(Garbage):
    """Erasure from the registry and the store of one home folder."""

    def take_out(self, project: str) -> list[str]:
        """Let no name lead to a project's versions, and no server load them; their references."""
        with self._write() as session:
            names = list(session.scalars(_names(project)))
            for table in _POINTERS:
                session.execute(delete(table).where(table.adapter.in_(names)))
            query = select(VersionRow).where(VersionRow.adapter.in_(names))
            rows = session.scalars(query.order_by(VersionRow.adapter, VersionRow.number)).all()
            usable = [row for row in rows if row.state not in (RETIRED, REMOVED)]
            for row in usable:
                row.state, row.reason = RETIRED, "its project is deleted"
            if names:
                _mark(session)  # servers look at aliases again
            return [f"{row.adapter}@{row.number}" for row in rows]

    def held(self, project: str) -> dict[str, list[str]]:
        """Versions of a project that servers have leased: the server's name to references."""
        query = (
            select(LeaseRow)
            .where(LeaseRow.until >= time.time(), LeaseRow.adapter.in_(_names(project)))
            .order_by(LeaseRow.server, LeaseRow.adapter, LeaseRow.number)
        )
        found: dict[str, list[str]] = {}
        with self._read() as session:
            for row in session.scalars(query):
                found.setdefault(row.server, []).append(f"{row.adapter}@{row.number}")
        return found

    def erase(self, project: str) -> int:
        """Remove what `take_out` took out and nobody holds; returns how many versions are left.

        Raises:
            StoreFailed: the store or the database can't be written; another call goes on.
        """
        with self.store.writing(), self._alone():
            self._sweep_staging(Collected(), dry_run=False)  # of a call that was killed
            for adapter, digest in self._doomed(project):
                self.store.erase(adapter, digest)
                self._forget_version(adapter, digest)
        return self._forget_adapters(project)

    def _doomed(self, project: str) -> Sequence[tuple[str, str]]:
        with self._read() as session:
            leases = select(LeaseRow.number).where(
                LeaseRow.until >= time.time(), LeaseRow.adapter == VersionRow.adapter,
                LeaseRow.number == VersionRow.number,
            )  # fmt: skip
            rows = session.execute(
                select(VersionRow.adapter, VersionRow.digest).where(
                    VersionRow.adapter.in_(_names(project)),
                    VersionRow.state.in_((RETIRED, REMOVED)), ~leases.exists(),
                )
            )  # fmt: skip
            return [(row[0], row[1]) for row in rows]

    def _forget_version(self, adapter: str, digest: str) -> None:
        """Its row goes, unless it was published again meanwhile: then the next call sees it."""
        with self._write() as session:
            row = session.scalar(select(VersionRow).filter_by(adapter=adapter, digest=digest))
            if row is None or row.state not in (RETIRED, REMOVED):
                return
            for table in _OF_VERSIONS:
                session.execute(delete(table).filter_by(adapter=adapter, number=row.number))
            session.delete(row)

    def _forget_adapters(self, project: str) -> int:
        """Adapters without versions go, with their history; how many versions others have."""
        with self._write() as session:
            names = list(session.scalars(_names(project)))
            rows = session.scalars(select(VersionRow).where(VersionRow.adapter.in_(names))).all()
            empty = set(names) - {row.adapter for row in rows}
            if empty:
                _mark(session)
            for table in (*_POINTERS, *_OF_VERSIONS, AliasMoveRow):
                session.execute(delete(table).where(table.adapter.in_(empty)))
            session.execute(delete(AdapterRow).where(AdapterRow.name.in_(empty)))
            return len(rows)


def _names(project: str) -> Select[str]:
    return select(AdapterRow.name).where(AdapterRow.project == project)


def _mark(session: Session) -> None:
    """Let the registry's revision grow: it must never be one that it was before.

    The row is of no adapter, and takes the place of the one before it.
    """
    before = list(session.scalars(select(AliasMoveRow.id).filter_by(adapter="")))
    now = datetime.now(UTC)
    session.add(
        AliasMoveRow(
            adapter="", alias="", from_number=None, to_number=0, who="", why="", moved=now,
            percent=None,
        )
    )  # fmt: skip
    session.flush()
    session.execute(delete(AliasMoveRow).where(AliasMoveRow.id.in_(before)))
