"""The database's address: where it is found, what is accepted, how it is shown."""

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from adapters.errors import InvalidInput
from adapters.home import Home

_POSTGRESQL = ("postgresql", "postgresql+psycopg")


def find_database(home: Home) -> URL:
    """The database of a home folder: as configured, else SQLite in it.

    Raises:
        InvalidInput: it is configured in a way that can't be used.
    """
    text = home.database_url
    if text is None:
        return sqlite_url(home.database)
    return parse_database_url(text)


def sqlite_url(file: Path) -> URL:
    """The address of an SQLite database in a file."""
    return URL.create("sqlite", database=str(file))


def parse_database_url(text: str) -> URL:
    """An accepted address, with the driver that is used.

    Raises:
        InvalidInput: without the address itself, since it may hold a password.
    """
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):  # a port that is no number is the latter
        raise _refused("is not an address of a database") from None
    if url.drivername in _POSTGRESQL:
        return _postgresql(url)
    if url.drivername != "sqlite":
        raise _refused(f"is for {url.drivername[:40]}, which is not supported")
    if url.query or not url.database or not Path(url.database).is_absolute():
        raise _refused("must name SQLite's file by its whole path, and nothing else")
    return url


def shown(url: URL) -> str:
    """The address for people to read: a password is `***`, parameters are left out."""
    plain = url.set(drivername=url.get_backend_name(), query={})
    return plain.render_as_string(hide_password=True)


def _postgresql(url: URL) -> URL:
    if "@" in (url.host or ""):
        raise _refused("has an @ in its user or password")
    if not url.database:
        raise _refused("names no database")
    if any("password" in name for name in url.query):
        raise _refused("has a password among its parameters")
    return url.set(drivername="postgresql+psycopg")


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        f"database_url {why}",
        hint="write postgresql://USER:PASSWORD@HOST/NAME (special characters percent-encoded, "
        "@ as %40) or sqlite:////FOLDER/FILE.db; without it the home folder's SQLite is used",
        param="database_url",
    )
