"""What the registry hands out, and how it reads and writes the database."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from adapters.connect import Database
from adapters.database import AdapterRow, AliasRow, VersionRow
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    Quarantined,
    Removed,
    Retired,
    VersionNotFound,
)
from adapters.home import Home
from adapters.manifest import Manifest
from adapters.names import Reference, fine_tuned_model
from adapters.store import Store

READY, QUARANTINED, RETIRED, REMOVED = "ready", "quarantined", "retired", "removed"
"""States of a version."""


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter's numbered, immutable content."""

    name: str
    number: int
    digest: str
    manifest: Manifest
    folder: Path
    state: str
    reason: str

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def fine_tuned_model(self) -> str:
        """Its name as OpenAI's API would give it."""
        manifest = self.manifest
        return fine_tuned_model(
            manifest.base.name, manifest.project, self.name, self.digest, manifest.checkpoint
        )


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    name: str
    project: str
    task: str
    created: datetime
    versions: int
    aliases: dict[str, int]


def check_ready(version: Version) -> None:
    """Raises Quarantined, Retired or Removed when the version is not one to use."""
    if version.state == RETIRED:
        raise Retired(
            f"{version.reference} is not in use: {version.reason}",
            hint="use another version, or publish or import the same files again",
            param="model",
        )
    if version.state == REMOVED:
        raise Removed(
            f"{version.reference} was removed: {version.reason}",
            hint="use another version, or publish or import the same files again",
            param="model",
        )
    if version.state != READY:
        raise Quarantined(
            f"{version.reference} is quarantined: {version.reason}",
            hint="use a version that passed its proof, or publish sound files again",
            param="model",
        )


class Records:
    """The database and the store of one home folder."""

    def __init__(self, home: Home, database: Engine, store: Store) -> None:
        self.home = home
        self.store = store
        self.database = Database(database)
        self._read, self._write = self.database.read, self.database.write

    def _adapter(self, session: Session, name: str) -> AdapterRow:
        row = session.get(AdapterRow, name)
        if row is None:
            raise AdapterNotFound(
                f"no adapter {name!r}", hint="list them with `modiste adapters list`", param="model"
            )
        return row

    def _row(self, session: Session, reference: Reference) -> VersionRow:
        query = select(VersionRow).where(VersionRow.adapter == reference.name)
        number = reference.number
        if reference.alias is not None:
            alias = session.get(AliasRow, (reference.name, reference.alias))
            if alias is None:
                raise AliasNotFound(
                    f"adapter {reference.name!r} has no alias {reference.alias!r}",
                    hint=f"promote a version: `modiste adapters promote {reference.name}@N`",
                    param="model",
                )
            number = alias.number
        if number is not None:
            found = list(session.scalars(query.where(VersionRow.number == number)))
        else:
            begins = VersionRow.digest.startswith(reference.digest or "")
            found = [
                row for row in session.scalars(query.where(begins)) if self._fits(row, reference)
            ]
        if len(found) != 1:
            wanted = reference.digest if number is None else f"version {number}"
            problem = "is ambiguous" if found else "does not exist"
            raise VersionNotFound(
                f"adapter {reference.name!r}: {wanted} {problem}",
                hint=f"list them with `modiste adapters show {reference.name}`",
                param="model",
            )
        return found[0]

    def _fits(self, row: VersionRow, reference: Reference) -> bool:
        """Whether a version has the base, the project and the step that a reference tells."""
        if reference.base is None:
            return True
        manifest = self.store.manifest(row.adapter, row.digest)
        told = (reference.base, reference.project, reference.checkpoint)
        return (manifest.base.name, manifest.project, manifest.checkpoint) == told

    def _version(self, row: VersionRow) -> Version:
        manifest = self.store.manifest(row.adapter, row.digest)
        folder = self.store.folder(row.adapter, row.digest)
        return Version(row.adapter, row.number, row.digest, manifest, folder, row.state, row.reason)
