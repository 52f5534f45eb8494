"""The audit log as it is read: pages of entries, the last first."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, true

from adapters.connect import Database
from adapters.database import AuditRow
from service.objects import page_of, seconds


@dataclass(frozen=True, slots=True)
class Sought:
    """Which entries; what is none does not matter."""

    since: datetime | None = None
    act: str | None = None
    """Whole, or its first part: `alias` for all of `alias.promoted`, …"""
    project: str | None = None
    """Whose thing it was, or of whose caller the act."""
    who: str | None = None

    def condition(self) -> ColumnElement[bool]:
        found: list[ColumnElement[bool]] = [self.scope()]
        if self.since is not None:
            found.append(AuditRow.made >= self.since)
        if self.act is not None:
            below = AuditRow.act.startswith(f"{self.act}.", autoescape=True)
            found.append(or_(AuditRow.act == self.act, below))
        if self.who is not None:
            found.append(AuditRow.who == self.who)
        return and_(*found)

    def scope(self) -> ColumnElement[bool]:
        """The entries among which a page may begin."""
        if self.project is None:
            return true()
        return or_(AuditRow.project == self.project, AuditRow.caller_project == self.project)


class AuditLog:
    """The entries in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self, sought: Sought, *, after: str | None = None, limit: int
    ) -> tuple[list[AuditRow], bool]:
        """Entries, the last first, and whether more follow.

        Raises:
            BadRequest: there is no entry `after`.
        """
        query = select(AuditRow).where(sought.condition())
        with self._database.read() as session:
            return page_of(session, query, sought.scope(), after, limit)


def describe_entry(entry: AuditRow) -> dict[str, Any]:
    """An entry as the API and the command tell it."""
    return {
        "object": "audit.entry", "id": entry.id, "created_at": seconds(entry.made),
        "act": entry.act, "what": entry.what, "project": entry.project,
        "details": entry.details,
        "actor": {"kind": entry.kind, "name": entry.who, "project": entry.caller_project},
        "request_id": entry.request_id,
    }  # fmt: skip
