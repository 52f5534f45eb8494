"""Garbage collection: the files of old versions, and what crashes left in the store.

A collected version keeps its number, its manifest and its place in the history; only its
files go. Its row says so before the first file goes, so a crash in between leaves a version
that is no longer offered, and the next collection finishes it.
"""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import Act
from adapters.canaries import Canaries
from adapters.database import AdapterRow, AliasRow, CanaryRow, LeaseRow, VersionRow
from adapters.errors import AdapterError, InvalidInput
from adapters.records import REMOVED, RETIRED
from adapters.remote_garbage import RemoteGarbage
from adapters.scratch import is_held
from adapters.store import ASIDE, MANIFEST

KEEP = 5
OLDER_THAN_DAYS = 30.0
COLLECTING = ".collecting"
"""The file by which collections follow one another."""

STAGING_AGE_S = 600.0
"""A younger folder may be about to be locked by the publication that made it."""


@dataclass(slots=True)
class Collected:
    """What a collection removed, or would remove."""

    versions: list[str] = field(default_factory=list)
    """References of versions whose files went."""
    leftovers: list[str] = field(default_factory=list)
    """Folders, relative to the store or as URLs, that belong to no version."""
    size: int = 0
    """Bytes freed, those of a remote store and of its cache here."""


class Garbage(Canaries, RemoteGarbage):
    """Collection in the store of one home folder."""

    def collect(
        self,
        *,
        keep: int = KEEP,
        older_than_days: float = OLDER_THAN_DAYS,
        dry_run: bool = False,
        project: str | None = None,
    ) -> Collected:
        """Remove files that nothing refers to.

        Args:
            project: its versions alone, and what belongs to no version is not told; none: all.

        Never touched: what an alias points at, tries out or would roll back to, what a running
        server holds a lease on, the newest `keep` versions of each adapter, with the checkpoints
        of their runs, and younger versions.
        Of a retired version nothing but a lease keeps the files.

        Raises:
            InvalidInput: keep or older_than_days is negative.
            StoreFailed: the database or the store can't be written; another call goes on.
        """
        for name, value in (("keep", keep), ("older_than_days", older_than_days)):
            if value < 0:
                raise InvalidInput(
                    f"{name} is {value}", hint=f"give {name} as 0 or more", param=name
                )
        collected = Collected()
        now = datetime.now(UTC)
        with self.store.writing(), self._alone():
            with self._write() as session:
                doomed = self._old(session, keep, now - timedelta(days=older_than_days), project)
                removed = {(row.adapter, row.digest) for row in doomed}
                folders = [self.store.folder(*version) for version in removed]
                collected.versions += [f"{row.adapter}@{row.number}" for row in doomed]
                collected.size += sum(_size(folder, spare=MANIFEST) for folder in folders)
                if not dry_run:
                    for row in doomed:
                        self._remove_version(session, row, f"collected on {now:%Y-%m-%d}")
            # publications rename into place under the same lock
            with self._write() as session:
                orphans = self._orphans(session)
                collected.leftovers += [str(path.relative_to(self.store.root)) for path in orphans]
                collected.size += sum(map(_size, orphans))
                if not dry_run:
                    self._set_aside([*orphans, *self._files_of_removed(session)])
            self._sweep_staging(collected, dry_run=dry_run)
        if self.store.remote is not None:
            leftovers, size = self._collect_remote(self.store.remote, removed, dry_run=dry_run)
            collected.leftovers += leftovers
            collected.size += size
        if project is not None:
            collected.leftovers.clear()
        return collected

    def _remove_version(self, session: Session, row: VersionRow, why: str) -> None:
        """From here on nobody uses a version, and its files may go."""
        row.state, row.reason = REMOVED, why
        project = self._adapter(session, row.adapter).project
        audit.record(
            session, Act.VERSION_DELETED, f"{row.adapter}@{row.number}", project=project,
            details={"digest": row.digest, "why": why},
        )  # fmt: skip

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One collection at a time: two would delete under each other's hands."""
        self.store.root.mkdir(parents=True, exist_ok=True)
        with (self.store.root / COLLECTING).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _old(
        self, session: Session, keep: int, before: datetime, project: str | None
    ) -> list[VersionRow]:
        leases = select(LeaseRow).where(LeaseRow.until >= time.time())
        leased = {(row.adapter, row.number) for row in session.scalars(leases)}
        held = set(leased)
        for alias in session.scalars(select(AliasRow)):
            held |= {(alias.adapter, n) for n in self._reachable(session, alias)}
        held |= {(row.adapter, row.number) for row in session.scalars(select(CanaryRow))}
        found: list[VersionRow] = []
        names = select(AdapterRow.name)
        if project is not None:
            names = names.where(AdapterRow.project == project)
        for name in session.scalars(names):
            rows = session.scalars(
                select(VersionRow).filter_by(adapter=name).order_by(VersionRow.number.desc())
            ).all()
            retired = [row for row in rows if row.state == RETIRED]
            found += [row for row in retired if (name, row.number) not in leased]
            usable = [row for row in rows if row.state not in (RETIRED, REMOVED)]
            found += [
                row
                for row in self._beyond(usable, keep)
                if (name, row.number) not in held and row.created < before
            ]
        return found

    def _beyond(self, rows: list[VersionRow], keep: int) -> list[VersionRow]:
        """The versions older than the newest `keep`, where a run's result counts for all of it.

        Args:
            rows: of one adapter, the newest first; a run's checkpoints come before its result.
        """
        if keep == 0 or len(rows) <= keep:
            return rows[keep:]
        results = [row for row in rows if not self._is_checkpoint(row)]
        return [row for row in rows if len(results) > keep and row.number <= results[keep].number]

    def _is_checkpoint(self, row: VersionRow) -> bool:
        try:
            return self.store.manifest(row.adapter, row.digest).checkpoint is not None
        except AdapterError:  # a damaged one counts as any other
            return False

    def _orphans(self, session: Session) -> list[Path]:
        """Folders in the places of versions that the database doesn't know."""
        known = {
            self.store.folder(adapter, digest)
            for adapter, digest in session.execute(select(VersionRow.adapter, VersionRow.digest))
        }
        return sorted(
            path
            for path in self.store.root.glob("*/*")
            if path.parent != self.store.staging and path.is_dir() and path not in known
        )

    def _files_of_removed(self, session: Session) -> list[Path]:
        rows = session.scalars(select(VersionRow).filter_by(state=REMOVED))
        folders = [self.store.folder(row.adapter, row.digest) for row in rows]
        return [
            path
            for folder in folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path.name != MANIFEST
        ]

    def _set_aside(self, paths: list[Path]) -> None:
        """Move among the abandoned, which takes no time; what is deleted there is nobody's."""
        for path in paths:
            self.store.staging.mkdir(exist_ok=True)
            path.rename(Path(tempfile.mkdtemp(dir=self.store.staging, prefix=ASIDE)) / path.name)

    def _sweep_staging(self, collected: Collected, *, dry_run: bool) -> None:
        for path in sorted(self.store.staging.glob("*")):
            if not _is_abandoned(path):
                continue
            if not path.name.startswith(ASIDE):
                collected.leftovers.append(str(path.relative_to(self.store.root)))
                collected.size += _size(path)
            if not dry_run:
                shutil.rmtree(path)


def _is_abandoned(folder: Path) -> bool:
    """Whether no living publication holds a staged folder."""
    if folder.name.startswith(ASIDE):
        return True
    if time.time() - folder.stat().st_mtime < STAGING_AGE_S:
        return False
    return not is_held(folder)


def _size(folder: Path, spare: str = "") -> int:
    """Bytes of a folder's files, less one that stays."""
    return sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != spare
    )
