"""Projects and their limits."""

from collections.abc import Mapping
from datetime import UTC, datetime

from adapters import audit
from adapters.audit import Act
from adapters.connect import Database
from adapters.errors import InvalidInput
from service.database import ProjectRow
from service.keys import DEFAULT_PROJECT
from service.limiting.limits import Limits


class Projects:
    """The projects in the database; one begins with its first key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def limit(self, name: str, changes: Mapping[str, int | None]) -> Limits:
        """Set some of a project's limits; servers notice within seconds.

        Args:
            changes: by the fields of Limits.

        Raises:
            InvalidInput: there is no such project.
        """
        with self._database.write() as session:
            row = session.get(ProjectRow, name)
            if row is None and name == DEFAULT_PROJECT:  # of all who have no key of the database
                row = ProjectRow(name=name, created=datetime.now(UTC))
                session.add(row)
            if row is None:
                raise InvalidInput(
                    f"no project {name[:80]!r}", hint="`modiste projects list` shows them",
                    param="project",
                )  # fmt: skip
            for limit, value in changes.items():
                setattr(row, limit, value)
            audit.record(session, Act.PROJECT_LIMITED, name, project=name, details=changes)
            return Limits.of(row)

    def limited(self) -> dict[str, Limits]:
        """The limits of projects that have some of their own."""
        with self._database.read() as session:
            return {row.name: Limits.of(row) for row in session.scalars(Limits.set_in(ProjectRow))}
