"""What a database names that lies outside of it, and where: versions, files, parts."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from adapters.database import VersionRow
from adapters.digests import digest_file, sync_file
from adapters.errors import DigestMismatch
from adapters.home import Home
from adapters.manifest import Manifest
from adapters.records import REMOVED, RETIRED
from adapters.remote import Remote
from adapters.store import MANIFEST, Store
from service.database import BatchPartRow, FileRow, PartRow
from service.files import DELETED
from service.uploads import key_of_part

ARRIVING = ".partial"
"""Ends the name of a file that is not all here yet."""

Tell = Callable[[str], None]
"""Told of each step."""


@dataclass(frozen=True, slots=True)
class Content:
    """One file, with what is known of it."""

    key: str
    size: int | None = None
    digest: str | None = None

    def is_at(self, place: Path) -> bool:
        if not place.is_file():
            return False
        if self.digest is not None:
            return digest_file(place) == self.digest
        return self.size is None or place.stat().st_size == self.size

    def fetch(self, source: Remote, folder: Path) -> None:
        """Copy it below a folder, unless it is there.

        Raises:
            Absent: the source answers and has none.
            DigestMismatch: what it has was altered.
            StoreFailed: the source can't be asked.
        """
        place = folder / self.key
        if self.is_at(place):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        arriving = place.with_name(place.name + ARRIVING)
        arriving.unlink(missing_ok=True)
        source.download(self.key, arriving)
        if not self.is_at(arriving):
            arriving.unlink()
            raise DigestMismatch(f"{self.key} was altered", hint="restore it from a backup")
        sync_file(arriving)
        arriving.replace(place)


def copy_file(source: Path, place: Path) -> None:
    """All of it is there, or nothing. Raises OSError."""
    arriving = place.with_name(place.name + ARRIVING)
    shutil.copyfile(source, arriving)
    sync_file(arriving)
    arriving.replace(place)


def copy_folder(source: Path, place: Path) -> None:
    """All files below a folder that are not there already. Raises OSError."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = place / path.relative_to(source)
        if not (copy.is_file() and digest_file(copy) == digest_file(path)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_file(path, copy)


def stores_of(home: Home, store: Store) -> tuple[Remote, Remote]:
    """Where versions lie, and where contents of files do: here or elsewhere."""
    versions = store.remote or Remote(f"file://{home.store}")
    return versions, Remote(home.files_url or f"file://{home.files}")


def named_files(database: Engine) -> list[Content]:
    """All but the files of versions."""
    kept = FileRow.deleted.is_(None) & FileRow.expires.is_distinct_from(DELETED)
    with Session(database) as session:
        files = session.scalars(select(FileRow).where(kept)).all()
        parts = session.scalars(select(PartRow)).all()
        places = session.scalars(select(BatchPartRow.place)).all()
    return [
        *(Content(row.id, row.bytes, row.digest) for row in files),
        *(Content(key_of_part(row.id), row.bytes) for row in parts),
        *map(Content, places),
    ]


def version_rows(database: Engine) -> list[VersionRow]:
    with Session(database) as session:
        return list(session.scalars(select(VersionRow).order_by(VersionRow.id)))


def manifest_of(row: VersionRow) -> Content:
    return Content(f"{row.adapter}/{row.digest.removeprefix('sha256:')}/{MANIFEST}")


def named_by(row: VersionRow, manifest: Manifest) -> Iterator[Content]:
    """The files of a version without its manifest; of one that is out of use none need be there."""
    if row.state not in (RETIRED, REMOVED):
        folder = manifest_of(row).key.removesuffix(MANIFEST)
        for name, digest in manifest.files.items():
            yield Content(folder + name, digest=digest)
