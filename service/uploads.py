"""Large files in parts: OpenAI's uploads.

A part is whole or not there; the order is told when the upload is completed, and the file
then is made of them at once. What is not completed within an hour expires.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adapters.connect import Database
from service.database import PartRow, UploadRow
from service.errors import BadRequest, UploadNotFound
from service.files import About, File, Files, new_id
from service.scratch import scratch

PENDING, COMPLETED, CANCELLED, EXPIRED = "pending", "completed", "cancelled", "expired"
LASTS = timedelta(hours=1)
MOST_BYTES = 8 * 2**30
PART_BYTES = 64 * 2**20
_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts."""

    id: str
    about: About
    bytes: int
    status: str
    created: datetime
    expires: datetime
    file: File | None = None

    def to_json(self) -> dict[str, Any]:
        """OpenAI's `upload` object."""
        return {
            "id": self.id, "object": "upload", "bytes": self.bytes,
            "created_at": int(self.created.timestamp()),
            "expires_at": int(self.expires.timestamp()),
            "filename": self.about.filename, "purpose": self.about.purpose, "status": self.status,
            "file": None if self.file is None else self.file.to_json(),
        }  # fmt: skip


class Uploads:
    """All uploads of one installation; parts lie beside the files' contents."""

    def __init__(self, database: Database, files: Files) -> None:
        self._database, self._files = database, files

    def create(self, about: About, size: int) -> Upload:
        """Begin an upload of `size` bytes."""
        now = datetime.now(UTC)
        row = UploadRow(
            id=new_id("upload_"), project=about.project, filename=about.filename,
            purpose=about.purpose, bytes=size, status=PENDING, created=now, expires=now + LASTS,
            file_expires_after_s=about.expires_after_s, file=None,
        )  # fmt: skip
        with self._database.write() as session:
            session.add(row)
        return _upload(row)

    def about(self, id_: str, project: str) -> About:
        """What the file of an upload is to be.

        Raises:
            UploadNotFound, BadRequest: there is no such upload, or it has ended.
        """
        with self._database.read() as session:
            return _upload(_pending(session, id_, project)).about

    def add_part(self, id_: str, project: str, content: Path) -> dict[str, Any]:
        """Keep a part; returns OpenAI's `upload.part` object.

        Raises:
            UploadNotFound, BadRequest: there is no such upload, or it takes no more.
            StoreFailed: nothing was kept.
        """
        size, now = content.stat().st_size, datetime.now(UTC)
        with self._database.read() as session:
            self._room(session, id_, project, size)
        part = PartRow(id=new_id("part_"), upload=id_, bytes=size, created=now)
        self._files.contents.upload(content, key_of_part(part.id))
        try:
            with self._database.write() as session:
                self._room(session, id_, project, size)  # others may have come meanwhile
                session.add(part)
        except BaseException:
            self._files.contents.remove([key_of_part(part.id)])
            raise
        return {
            "id": part.id, "object": "upload.part", "created_at": int(now.timestamp()),
            "upload_id": id_,
        }  # fmt: skip

    def _room(self, session: Session, id_: str, project: str, size: int) -> None:
        row = _pending(session, id_, project)
        had = session.scalar(select(func.sum(PartRow.bytes)).filter_by(upload=id_)) or 0
        if had + size > row.bytes:
            raise BadRequest(
                f"the parts would have {had + size} bytes, and {row.bytes} were announced",
                param="data", hint="begin an upload with the right bytes",
            )  # fmt: skip

    @contextmanager
    def joined(
        self, id_: str, project: str, part_ids: Sequence[str]
    ) -> Iterator[tuple[Path, About]]:
        """The whole content, of the parts in the order given, for as long as the block lasts.

        Raises:
            UploadNotFound, BadRequest: no such upload or part, or bytes are missing.
            StoreFailed: a part can't be read.
        """
        with self._database.read() as session:
            row = _pending(session, id_, project)
            sizes = {p.id: p.bytes for p in session.scalars(select(PartRow).filter_by(upload=id_))}
        _check_parts(part_ids, sizes, row.bytes)
        with scratch(self._files.scratch) as folder:
            whole, piece = folder / "whole", folder / "part"
            with whole.open("wb") as file:
                for part_id in part_ids:
                    self._files.contents.download(key_of_part(part_id), piece)
                    with piece.open("rb") as source:
                        while data := source.read(_PIECE):
                            file.write(data)
                    piece.unlink()
            yield whole, _upload(row).about

    def complete(self, id_: str, project: str, whole: Path) -> Upload:
        """Make the file of a content that was `joined` and looked at.

        Raises:
            UploadNotFound, BadRequest: the upload has ended meanwhile.
            StoreFailed: the upload is still pending.
        """
        about = self.about(id_, project)
        made = self._files.add(whole, about)
        try:
            with self._database.write() as session:
                row = _pending(session, id_, project)
                row.status, row.file = COMPLETED, made.id
                gone = self._drop_parts(session, [id_])
        except BaseException:  # completed by another request meanwhile
            self._files.delete(made.id, project)
            raise
        self._files.contents.remove(map(key_of_part, gone))
        return _upload(row, made)

    def cancel(self, id_: str, project: str) -> Upload:
        """End an upload without a file.

        Raises:
            UploadNotFound, BadRequest: there is no such upload, or it has ended.
        """
        with self._database.write() as session:
            row = _pending(session, id_, project)
            row.status = CANCELLED
            gone = self._drop_parts(session, [id_])
        self._files.contents.remove(map(key_of_part, gone))
        return _upload(row)

    def expire(self) -> int:
        """End uploads that took too long; returns how many."""
        with self._database.write() as session:
            late = select(UploadRow).where(
                UploadRow.status == PENDING, UploadRow.expires <= datetime.now(UTC)
            )
            rows = list(session.scalars(late))
            for row in rows:
                row.status = EXPIRED
            gone = self._drop_parts(session, [row.id for row in rows])
        self._files.contents.remove(map(key_of_part, gone))
        return len(rows)

    def erase(self, project: str, most: int) -> int:
        """Remove what is known of some of a project's uploads, and their parts; returns how many.

        Raises:
            StoreFailed: they are still known.
        """
        mine = select(UploadRow.id).where(UploadRow.project == project).limit(most)
        with self._database.read() as session:
            ids = list(session.scalars(mine))
            parts = list(session.scalars(select(PartRow.id).where(PartRow.upload.in_(ids))))
        self._files.contents.remove(map(key_of_part, parts))
        with self._database.write() as session:
            session.execute(delete(PartRow).where(PartRow.id.in_(parts)))
            # where another part came meanwhile the upload goes with the next call
            open_ = select(PartRow.id).where(PartRow.upload == UploadRow.id).exists()
            session.execute(delete(UploadRow).where(UploadRow.id.in_(ids), ~open_))
        return len(ids)

    def _drop_parts(self, session: Session, uploads: Sequence[str]) -> list[str]:
        parts = list(session.scalars(select(PartRow.id).where(PartRow.upload.in_(uploads))))
        session.execute(delete(PartRow).where(PartRow.upload.in_(uploads)))
        return parts


def _pending(session: Session, id_: str, project: str) -> UploadRow:
    row = session.get(UploadRow, id_)
    if row is None or row.project != project:
        raise UploadNotFound(
            f"no upload {id_[:80]!r}", param="upload_id", hint="begin one with POST /v1/uploads"
        )
    late = row.expires <= datetime.now(UTC)
    if row.status != PENDING or late:
        raise BadRequest(
            f"upload {id_} is {EXPIRED if late and row.status == PENDING else row.status}",
            param="upload_id", hint="begin another", code="upload_ended",
        )  # fmt: skip
    return row


def _check_parts(part_ids: Sequence[str], sizes: dict[str, int], promised: int) -> None:
    for part_id in part_ids:
        if part_id not in sizes:
            raise BadRequest(
                f"part_ids: the upload has no part {part_id[:80]!r}", param="part_ids",
                hint="give the ids that POST /v1/uploads/ID/parts answered",
            )  # fmt: skip
    if len(set(part_ids)) != len(part_ids):
        raise BadRequest(
            "part_ids: a part is named twice", param="part_ids", hint="name each part once"
        )
    if (had := sum(sizes[part_id] for part_id in part_ids)) != promised:
        raise BadRequest(
            f"the parts have {had} bytes, and {promised} were announced",
            param="part_ids", hint="send what is missing, or begin again with the right bytes",
        )  # fmt: skip


def _upload(row: UploadRow, file: File | None = None) -> Upload:
    about = About(row.project, row.filename, row.purpose, row.file_expires_after_s)
    return Upload(row.id, about, row.bytes, row.status, row.created, row.expires, file)


def key_of_part(part_id: str) -> str:
    return f"parts/{part_id}"
