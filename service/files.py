"""Files that callers upload and jobs write: what is known of them, and their content.

The database knows a file from the moment that its content is whole in the file store; a
file that is deleted or has expired is gone at once, its content a moment later. Contents
lie under their file's id at an fsspec URL, a folder of the home by default.
"""

import logging
import secrets
import string
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import SERVER, Act, Actor
from adapters.connect import Database
from adapters.digests import digest_file
from adapters.errors import StoreFailed
from adapters.home import Home
from adapters.remote import Absent, Remote
from service.database import FileRow
from service.errors import FileNotFound, InUse
from service.objects import MOST_S, page_of
from service.scratch import scratch

logger = logging.getLogger("modiste.files")

UPLOADED = ("fine-tune", "batch", "evals", "user_data")
"""Purposes that a caller may give."""
WRITTEN = ("fine-tune-results", "batch_output")
"""Purposes of what jobs and batches write."""
INCOMING = ".incoming"
BATCH_EXPIRES = timedelta(seconds=MOST_S)
"""Files for batches expire without being asked to, as at OpenAI."""
_CURSOR_KEPT = timedelta(days=7)
"""So long after its end a file may be the `after` of a page."""

DELETED = datetime.fromtimestamp(0, UTC)
"""Expiry of a file that was taken away before its time, and whose content is about to go."""

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 24

AT_ONCE = 500
"""Files of one transaction, for which other writes wait."""

Uses = Callable[[Session, str], str | None]
"""Who still needs a file, told in words; None: nobody."""


@dataclass(frozen=True, slots=True)
class File:
    """A file, without its content."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    digest: str
    created: datetime
    expires: datetime | None
    deleted: bool = False

    def to_json(self) -> dict[str, Any]:
        """OpenAI's `file` object."""
        return {
            "id": self.id, "object": "file", "bytes": self.bytes,
            "created_at": int(self.created.timestamp()),
            "expires_at": None if self.expires is None else int(self.expires.timestamp()),
            "filename": self.filename, "purpose": self.purpose, "status": "processed",
            "status_details": None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class About:
    """What a file is to be."""

    project: str
    filename: str
    purpose: str
    expires_after_s: int | None = None

    def expiry(self, now: datetime) -> datetime | None:
        if self.expires_after_s is not None:
            return now + timedelta(seconds=self.expires_after_s)
        return now + BATCH_EXPIRES if self.purpose == "batch" else None


class Files:
    """All files of one installation.

    Args:
        uses: asked in the transaction that deletes a file.

    Attributes:
        contents: by id; parts of uploads lie below `parts/`.
        scratch: a folder on this machine for what comes in.
    """

    def __init__(self, database: Database, home: Home, uses: Sequence[Uses] = ()) -> None:
        self._database, self._uses = database, uses
        url = home.files_url
        self._local = home.files if url is None else None
        self.scratch = home.files / INCOMING
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.contents = Remote(f"file://{home.files}" if url is None else url)

    def add(self, content: Path, about: About, id_: str | None = None) -> File:
        """Keep a copy of a content.

        Args:
            id_: of the file, from `derived_id` of what the content follows from; a second call
                changes nothing, and two at once keep the same file.

        Raises:
            StoreFailed: nothing was kept.
        """
        if id_ is not None and (known := self._known(id_)) is not None:
            if not known.deleted and not self.is_whole(known):
                self.contents.upload(content, known.id)
            return known
        now = datetime.now(UTC)
        row = FileRow(
            id=id_ or new_id("file-"), project=about.project, filename=about.filename,
            purpose=about.purpose, bytes=content.stat().st_size, digest=digest_file(content),
            created=now, expires=about.expiry(now),
        )  # fmt: skip
        self.contents.upload(content, row.id)
        try:
            with self._database.write() as session:
                session.add(row)
                session.flush()
                return _file(row)
        except Exception:
            # a connection that broke during the commit doesn't tell whether it happened, and a
            # derived id is that of every attempt
            known = self._known(row.id)
            if known is not None:
                return known
            if id_ is None:
                self.contents.remove([row.id])
            raise

    def _known(self, id_: str) -> File | None:
        with self._database.read() as session:
            row = session.scalar(select(FileRow).where(FileRow.id == id_))
            return None if row is None else _file(row)

    def is_whole(self, file: File) -> bool:
        """Whether a content is there, with as many bytes as it should have.

        Raises:
            StoreFailed: the store is away.
        """
        try:
            return self.contents.size(file.id) == file.bytes
        except Absent:
            return False

    def find(
        self, id_: str, project: str, param: str | None = None, *, expired: bool = False
    ) -> File:
        """A project's file.

        Args:
            expired: work that began with a file finds it after its time too.

        Raises:
            FileNotFound: there is none, it has expired, or it is another project's.
        """
        with self._database.read() as session:
            return _file(_row(session, id_, project, param, expired=expired))

    def page(
        self,
        project: str,
        *,
        purposes: Collection[str],
        after: str | None,
        limit: int,
        rising: bool,
    ) -> tuple[list[File], bool]:
        """Files in the order in which they came, or the last first; and whether more follow.

        Args:
            purposes: files with others are left out.

        Raises:
            BadRequest: there is no file `after`.
        """
        of = FileRow.project == project
        query = select(FileRow).where(of, lives(), FileRow.purpose.in_(purposes))
        with self._database.read() as session:
            rows, more = page_of(session, query, of, after, limit, rising=rising)
        return [_file(row) for row in rows], more

    def delete(self, id_: str, project: str) -> None:
        """Remove a file.

        Raises:
            FileNotFound: as `find` says.
            InUse: a job or batch that has not ended needs it.
        """
        with self._database.write() as session:
            row = _row(session, id_, project, None)
            for uses in self._uses:
                if (user := uses(session, id_)) is not None:
                    raise InUse(
                        f"file {id_} is used by {user}", param="file_id", code="file_in_use",
                        hint="cancel that first, or wait for its end",
                    )  # fmt: skip
            row.expires, row.filename = DELETED, ""
            audit.record(session, Act.FILE_DELETED, id_, project=project)
        try:
            self.contents.remove([id_])
        except StoreFailed as error:
            logger.warning("the content of %s is removed later: %s", id_, error)
            return
        with self._database.write() as session:
            gone = update(FileRow).where(FileRow.id == id_)
            session.execute(gone.values(deleted=datetime.now(UTC)))

    def expire(self) -> int:
        """Remove what has expired; returns how many files that were.

        Raises:
            StoreFailed: the rest is left for the next time.
        """
        last, removed = 0, 0
        while True:
            due = FileRow.deleted.is_(None) & (FileRow.expires <= datetime.now(UTC))
            with self._database.read() as session:
                numbers = self.numbers(session, due & (FileRow.number > last))
                if not numbers:
                    break
                ids = [row.id for row in self.unused(session, FileRow.number.in_(numbers))]
            # contents first: what a kill leaves is still known, and goes the next time
            self.contents.remove(ids)
            removed += self._forget(ids)
            last = numbers[-1]
        with self._database.write() as session:
            old = FileRow.deleted < datetime.now(UTC) - _CURSOR_KEPT
            session.execute(delete(FileRow).where(old))
        return removed

    def _forget(self, late: list[str]) -> int:
        """What has expired is a place in lists from here on; returns how many files that were."""
        with self._database.write() as session:
            known = select(FileRow).where(FileRow.id.in_(late), FileRow.deleted.is_(None))
            gone = list(session.scalars(known.order_by(FileRow.number)))
            expired = [row for row in gone if row.expires != DELETED]
            for project, ids in by_project(expired).items():
                audit.record(
                    session, Act.FILES_EXPIRED, "files", project=project,
                    details=audit.listed(ids), by=Actor(SERVER, "expiry"),
                )  # fmt: skip
            for row in gone:
                row.deleted, row.filename = datetime.now(UTC), ""
        return len(gone)

    def erase(self, project: str, most: int) -> int:
        """Remove some of a project's files, whatever needs them; returns how many.

        Raises:
            StoreFailed: they are still known.
        """
        mine = select(FileRow.id).where(FileRow.project == project).limit(most)
        with self._database.read() as session:
            ids = list(session.scalars(mine))
        self.contents.remove(ids)
        with self._database.write() as session:
            session.execute(delete(FileRow).where(FileRow.id.in_(ids)))
        return len(ids)

    def numbers(self, session: Session, which: ColumnElement[bool]) -> list[int]:
        """The first of some files, as many as one transaction shall look at."""
        query = select(FileRow.number).where(which).order_by(FileRow.number)
        return list(session.scalars(query.limit(AT_ONCE)))

    def unused(self, session: Session, which: ColumnElement[bool]) -> list[FileRow]:
        """Those of some files that no job or batch needs any more."""
        query = select(FileRow).where(which).order_by(FileRow.number)
        return [
            row for row in session.scalars(query).all()
            if not any(uses(session, row.id) for uses in self._uses)
        ]  # fmt: skip

    @contextmanager
    def content(self, file: File) -> Iterator[Path]:
        """A file's content on this machine, for as long as the block lasts.

        Raises:
            StoreFailed: it can't be had; or was altered, which is looked at where it comes from
                another machine.
        """
        if self._local is not None:
            place = self._local / file.id
            if not place.is_file():
                raise _altered(file)
            yield place
            return
        with scratch(self.scratch) as folder:
            place = folder / file.id
            self.contents.download(file.id, place)
            if digest_file(place) != file.digest:
                raise _altered(file)
            yield place


def by_project(rows: Iterable[FileRow]) -> dict[str, list[str]]:
    """Ids of files by whose they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row.project].append(row.id)
    return found


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def derived_id(*parts: str) -> str:
    """A file's id that follows from what it is, so that work which is repeated makes it once."""
    number = int.from_bytes(sha256("\0".join(parts).encode()).digest())
    digits = ""
    while len(digits) < _ID_LENGTH:
        number, rest = divmod(number, len(_ALPHABET))
        digits += _ALPHABET[rest]
    return f"file-{digits}"


def lives() -> ColumnElement[bool]:
    """Files that can be asked for."""
    current = or_(FileRow.expires.is_(None), FileRow.expires > datetime.now(UTC))
    return and_(FileRow.deleted.is_(None), current)


def _row(
    session: Session, id_: str, project: str, param: str | None, *, expired: bool = False
) -> FileRow:
    known = and_(FileRow.deleted.is_(None), FileRow.expires.is_distinct_from(DELETED))
    wanted = known if expired else lives()
    query = select(FileRow).where(FileRow.id == id_, FileRow.project == project, wanted)
    row = session.scalar(query)
    if row is None:
        raise FileNotFound(
            f"no file {id_[:80]!r}", param=param or "file_id",
            hint="GET /v1/files lists this project's files",
        )  # fmt: skip
    return row


def _file(row: FileRow) -> File:
    return File(
        row.id, row.project, row.filename, row.purpose, row.bytes, row.digest, row.created,
        row.expires, row.deleted is not None or row.expires == DELETED,
    )  # fmt: skip


class ContentLost(StoreFailed):
    """A file's content is not what was kept: to ask again is of no use."""

    retryable = False


def _altered(file: File) -> StoreFailed:
    return ContentLost(
        f"the content of {file.id} is missing or was altered",
        hint="upload the file again, and look at the disk or bucket that holds files_url",
    )
