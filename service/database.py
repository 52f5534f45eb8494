"""The tables of what callers keep here: keys, files, uploads.

They lie beside the registry's in one database and have one history of migrations with them
(`adapters/migrations`). What is listed in pages has a `number` that rises, so that a page
begins after a row whatever its time says.
"""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from adapters.database import Table


class ProjectRow(Table):
    """A tenant."""

    __tablename__ = "projects"
    name: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[datetime]


class KeyRow(Table):
    """An API key; the key itself is told once and kept nowhere."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("digest", name="uq_api_keys_digest"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    """SHA-256 in hex."""
    project: Mapped[str] = mapped_column(ForeignKey("projects.name"))
    name: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]


class FileRow(Table):
    """A file that a caller uploaded or a job wrote; its content lies in the file store."""

    __tablename__ = "files"
    __table_args__ = (
        UniqueConstraint("id", name="uq_files_id"),
        Index("ix_files_project", "project", "number"),
        Index("ix_files_expires", "expires"),
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    project: Mapped[str]
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str]
    """Of the content."""
    created: Mapped[datetime]
    expires: Mapped[datetime | None]


class UploadRow(Table):
    """A file that comes in parts."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Promised; so many must have come when it is completed."""
    status: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime]
    file_expires_after_s: Mapped[int | None]
    file: Mapped[str | None]
    """Its id, once completed."""


class PartRow(Table):
    """A part of an upload; the order is told at its completion."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload", "upload"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[datetime]
