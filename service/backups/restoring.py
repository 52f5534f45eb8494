"""A backup comes back into an empty home, and into an empty database.

Contents come first and the database last, so that it names nothing that is not there. A restore
that was killed left a mark, and is gone on with by the same command.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import DBAPIError

from adapters.bases import Base
from adapters.cached import open_store
from adapters.connect import open_database
from adapters.database import BaseRow
from adapters.database_url import find_database
from adapters.digests import sync_file
from adapters.dump import check_empty, copy_in, opened
from adapters.errors import InvalidInput, StoreFailed
from adapters.home import RESTORING, Home
from adapters.manifest import parse_manifest
from adapters.remote import Remote
from service.backups.about import DATABASE, About, counted, read_about
from service.backups.contents import (
    Content,
    Tell,
    copy_file,
    copy_folder,
    manifest_of,
    named_by,
    named_files,
    stores_of,
    version_rows,
)


def restore(source: Path, home: Home, tell: Tell) -> tuple[About, dict[str, int]]:
    """Fill a home; returns what the backup is, and how much there is now.

    Raises:
        InvalidInput: the backup is not whole, or there is something in the home or its database.
        StoreFailed: the disk, the store or the database can't be used; the next call goes on.
    """
    source = source.expanduser().absolute()
    about = read_about(source)
    with _writing(home):
        _begin(home, about)
        settings = source / home.settings.name
        if settings.is_file() and not home.settings.exists():
            copy_file(settings, home.settings)
        _check_database(home)
        place = home.root / f"{DATABASE}{RESTORING}"
        copy_file(source / DATABASE, place)
        with opened(place) as database:  # its tables are brought up to date
            _copy_bases(source, home, about, tell)
            _move_bases(database, home, about, tell)
            _copy_contents(source, home, database)
            counts = counted(database)
        tell("versions and files are there")
        _bring_in(place, home)
        tell("the database is there")
        (home.root / RESTORING).unlink()
        sync_file(home.root)
    return about, counts


@contextmanager
def _writing(home: Home) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, DBAPIError) as error:
        raise StoreFailed(
            f"{home.root} can't be restored: {error}",
            hint="free disk space or check the folder's owner, then give the command again",
        ) from error


def _begin(home: Home, about: About) -> None:
    """Mark the home, where it is empty but for settings or was marked for the same backup."""
    home.root.mkdir(parents=True, exist_ok=True)
    mark = home.root / RESTORING
    if mark.is_file() and mark.read_text() == about.database:
        return
    others = sorted(path.name for path in home.root.iterdir() if path != home.settings)
    if others:
        raise InvalidInput(
            f"the home folder {home.root} is not empty: it has {', '.join(others[:3])}",
            hint="name an empty folder with --home, or move what is there away; "
            "nothing is ever overwritten",
            param="home",
        )
    mark.write_text(about.database)
    sync_file(mark)


def _check_database(home: Home) -> None:
    url = find_database(home)
    if url.get_backend_name() == "sqlite":
        if Path(url.database or "").exists():
            raise InvalidInput(
                f"there is a database at {url.database}",
                hint="move it away, or name another place by database_url; where a restore ended "
                f"after it had made it, only {home.root / RESTORING} has to go",
                param="database_url",
            )
        return
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            check_empty(connection)
    finally:
        engine.dispose()


def _copy_bases(source: Path, home: Home, about: About, tell: Tell) -> None:
    for name in about.bases:
        copy_folder(source / "bases" / name, home.bases / name)
        tell(f"the base model {name} is there")


def _move_bases(database: Engine, home: Home, about: About, tell: Tell) -> None:
    """Base models lie in another home now."""
    with database.execution_options(writes=True).begin() as connection:
        for name, record in connection.execute(select(BaseRow.name, BaseRow.record)).all():
            path = Base.model_validate(record).path
            if name in about.bases:
                path = home.bases / name
            elif path.is_relative_to(about.home):
                path = home.root / path.relative_to(about.home)
            if not path.is_dir():
                tell(f"the base model {name} is not in the backup: modiste base add, as {name}")
            moved = update(BaseRow).where(BaseRow.name == name)
            connection.execute(moved.values(record={**record, "path": str(path)}))


def _copy_contents(source: Path, home: Home, database: Engine) -> None:
    """Into the stores that the home's settings name; what is there already stays."""
    versions, files = stores_of(home, open_store(home))
    for folder in (home.store, home.files):
        folder.mkdir(exist_ok=True)
    for row in version_rows(database):
        listed = manifest_of(row)
        text = source / "store" / listed.key
        if text.is_file():
            manifest = parse_manifest(text.read_bytes(), f"{row.adapter}@{row.number}")
            place = listed.key.rpartition("/")[0]
            has = {f"{place}/{name}": size for name, size in versions.files(place).items()}
            _put(source / "store", [*named_by(row, manifest), listed], versions, has)
    there = files.files()
    for content in named_files(database):
        _put(source / "files", [content], files, there)


def _put(folder: Path, contents: list[Content], target: Remote, there: dict[str, int]) -> None:
    """Upload what belongs together, where the backup has it, unless all of its size is there.

    Raises:
        StoreFailed: the backup was altered, or the target can't be written.
    """
    had = [content for content in contents if (folder / content.key).is_file()]
    if all(there.get(content.key) == (folder / content.key).stat().st_size for content in had):
        return
    for content in had:
        if not content.is_at(folder / content.key):
            raise StoreFailed(
                f"{folder / content.key} was altered", hint="restore from another backup"
            )
        target.upload(folder / content.key, content.key)


def _bring_in(place: Path, home: Home) -> None:
    url = find_database(home)
    if url.get_backend_name() == "sqlite":
        target = Path(url.database or "")
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_file(place)
        shutil.move(place, target)
        sync_file(target.parent)
        return
    engine = open_database(url)
    try:
        copy_in(place, engine)
    finally:
        engine.dispose()
    place.unlink()
