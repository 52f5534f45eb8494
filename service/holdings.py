"""What projects have."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adapters.connect import Database
from adapters.database import AdapterRow
from service.database import (
    BatchRow,
    FileRow,
    JobRow,
    KeyRow,
    ProjectRow,
    UploadRow,
    UsageRow,
)

HELD: dict[str, Any] = {
    "files": FileRow, "uploads": UploadRow, "batches": BatchRow, "jobs": JobRow,
    "adapters": AdapterRow, "usage": UsageRow,
}  # fmt: skip
"""What a project may have, and its table."""


@dataclass(slots=True)
class Holdings:
    """A project, and how much it has."""

    name: str
    deleting: datetime | None = None
    """Since when it is being deleted, or is."""
    keys: int = 0
    """That are not revoked."""
    has: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HELD, 0))

    @property
    def is_empty(self) -> bool:
        return not any(self.has.values())


def all_holdings(database: Database) -> dict[str, Holdings]:
    """Every project that has a row or anything else, in the order of their names."""
    with database.read() as session:
        found = {
            row.name: Holdings(row.name, row.deleting)
            for row in session.scalars(select(ProjectRow))
        }
        for what, table in HELD.items():
            which = [FileRow.deleted.is_(None)] if table is FileRow else []
            for name, count in _counts(session, table, *which).items():
                found.setdefault(name, Holdings(name)).has[what] = count
        for name, count in _counts(session, KeyRow, KeyRow.revoked.is_(None)).items():
            found[name].keys = count
    return dict(sorted(found.items()))


def has_any(session: Session, name: str, *, usage: bool = True) -> bool:
    """Whether a project has anything, keys aside."""
    tables = [table for what, table in HELD.items() if usage or what != "usage"]
    return any(
        session.scalar(select(table.project).where(table.project == name).limit(1)) is not None
        for table in tables
    )


def _counts(session: Session, table: Any, *which: Any) -> dict[str, int]:
    query = select(table.project, func.count()).where(*which).group_by(table.project)
    return {row[0]: row[1] for row in session.execute(query)}
