"""A backup: a folder that is laid out as a home, with a mark that is written last.

    BACKUP/backup.json   when it was made, of what, what it lacks; without it there is no backup
    BACKUP/modiste.db    the database as SQLite, whichever it is copied from
    BACKUP/store/        versions
    BACKUP/files/        contents of files, parts of uploads and of batches
    BACKUP/bases/        base models
    BACKUP/modiste.yaml

The database is copied first, then what it names. What was deleted in between is missing, so both
are done again; what is still missing then was lost in the home before, and the copy says so.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from adapters.bases import Base
from adapters.database import BaseRow, VersionRow
from adapters.digests import sync_file
from adapters.dump import copy_out, opened
from adapters.errors import DigestMismatch, InvalidInput, InvalidManifest, StoreFailed
from adapters.home import Home
from adapters.records import QUARANTINED, READY
from adapters.registry import Registry
from adapters.remote import Absent, Remote
from adapters.store import Store
from service.backups.about import DATABASE, MARK, PARTIAL, About, counted, write_about
from service.backups.contents import (
    Tell,
    copy_file,
    copy_folder,
    manifest_of,
    named_by,
    named_files,
    stores_of,
    version_rows,
)

ROUNDS = 5
"""Copies of the database at most; each but the first because something was deleted meanwhile."""


@dataclass(slots=True)
class Round:
    """What one copy of the database names, and what of it was not to be had."""

    named: set[str] = field(default_factory=set)
    """Paths within the backup."""
    versions: dict[int, str] = field(default_factory=dict)
    """Number of the row to the reason, of those that should be ready."""
    lost: list[str] = field(default_factory=list)


def back_up(registry: Registry, target: Path, *, bases: bool = True, tell: Tell) -> About:
    """Make a backup while servers and workers go on; one that was killed is gone on with.

    Raises:
        InvalidInput: there is something at `target`, or it lies in the home.
        StoreFailed: the database, the store or the disk can't be used; what was copied stays.
    """
    target = target.expanduser().absolute()
    _check_target(registry.home, target)
    with _writing(target), _partial(target) as partial:
        last = _follow(registry, partial, tell)
        with opened(partial / DATABASE) as database:
            _mark_lost(database, last.versions)
            kept = _copy_bases(database, partial, tell) if bases else []
            counts = counted(database)
        if registry.home.settings.is_file():
            copy_file(registry.home.settings, partial / registry.home.settings.name)
        sync_file(partial / DATABASE)
        about = write_about(partial, registry.home.root, counts, kept, last.lost)
        partial.rename(target)
        sync_file(target.parent)
    return about


def _check_target(home: Home, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput(
            f"there is something at {target}",
            hint="name a folder that does not exist yet; no backup is ever overwritten",
            param="target",
        )
    if target.is_relative_to(home.root):
        raise InvalidInput(
            f"{target} lies in the home folder {home.root}, and would go with it",
            hint="name a folder on another disk", param="target",
        )  # fmt: skip


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, DBAPIError) as error:
        raise StoreFailed(
            f"the backup {target} can't be made: {error}",
            hint="free disk space or check the folder's owner, then give the command again: "
            "what is copied stays",
        ) from error


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """The folder of a backup that is being made, by nobody else."""
    partial = target.with_name(target.name + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    partial.chmod(0o700)  # callers' files are in it, and settings
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"{target} is being made by another process",
                hint="wait for it, or name another folder", param="target",
            ) from None  # fmt: skip
        (partial / MARK).unlink(missing_ok=True)
        yield partial
    finally:
        os.close(descriptor)


def _follow(registry: Registry, partial: Path, tell: Tell) -> Round:
    """Copy the database and what it names, until nothing is missing that is still named."""
    versions, files = stores_of(registry.home, registry.store)
    before: list[str] = []
    for _ in range(ROUNDS):
        copy_out(registry.database.engine, partial / DATABASE)
        tell("the database is copied")
        now = Round()
        with opened(partial / DATABASE) as database:
            _copy_versions(versions, database, partial / "store", now)
            tell("versions are copied")
            _copy_files(files, database, partial / "files", now)
            tell("files are copied")
        if now.lost == before or not now.lost:
            break
        before = now.lost
    _keep_only(partial, now.named)
    return now


def _copy_versions(source: Remote, database: Engine, target: Path, now: Round) -> None:
    ready = 0
    copy = Store(target)
    for row in version_rows(database):
        ready += row.state == READY
        listed = manifest_of(row)
        try:
            text = source.read(listed.key)
            manifest = copy.parse(text, row.adapter, row.digest)
            place = target / listed.key
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text)
            sync_file(place)
            for content in named_by(row, manifest):
                now.named.add(f"store/{content.key}")
                content.fetch(source, target)
        except (Absent, DigestMismatch, InvalidManifest) as error:
            if row.state == READY:
                now.versions[row.id] = error.message
                now.lost.append(f"{row.adapter}@{row.number}: {error.message}")
        now.named.add(f"store/{listed.key}")
    if ready and ready == len(now.versions):
        raise StoreFailed(
            f"none of the {ready} versions is whole in {source.url}",
            hint="check that the store is mounted and that store_url names it",
        )


def _copy_files(source: Remote, database: Engine, target: Path, now: Round) -> None:
    for content in named_files(database):
        now.named.add(f"files/{content.key}")
        try:
            content.fetch(source, target)
        except (Absent, DigestMismatch) as error:
            now.lost.append(f"file {content.key}: {error.message}")


def _keep_only(partial: Path, named: set[str]) -> None:
    """Remove what an earlier round or try copied and the database does not name any more."""
    for folder in ("store", "files"):
        for path in sorted((partial / folder).rglob("*"), reverse=True):
            if not path.is_dir() and str(path.relative_to(partial)) not in named:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _mark_lost(database: Engine, versions: dict[int, str]) -> None:
    """In the copy no version is ready that has not all its files there."""
    with database.execution_options(writes=True).begin() as connection:
        for row, why in versions.items():
            marked = update(VersionRow).where(VersionRow.id == row)
            reason = f"not whole when it was backed up: {why}"
            connection.execute(marked.values(state=QUARANTINED, reason=reason))


def _copy_bases(database: Engine, partial: Path, tell: Tell) -> list[str]:
    """The names of those that are in the backup now: all."""
    with Session(database) as session:
        bases = [Base.model_validate(row.record) for row in session.scalars(select(BaseRow))]
    for base in bases:
        if not base.path.is_dir():
            raise StoreFailed(
                f"the folder of the base model {base.name} is gone: {base.path}",
                hint="add it again with `modiste base add`, or leave base models out: --no-bases",
            )
        copy_folder(base.path, partial / "bases" / base.name)
        tell(f"the base model {base.name} is copied")
    return [base.name for base in bases]
