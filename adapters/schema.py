"""Which tables a database has, and how they are brought up to date apart from a server's start."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from adapters.connect import connect, not_opened, open_database, reason, revision
from adapters.database import SCHEMA
from adapters.database_url import shown


@dataclass(frozen=True, slots=True)
class Schema:
    """The state of a database.

    Attributes:
        database: its address, without the password.
        found: revision of its tables; None: it has none.
        wanted: that of this program.
    """

    database: str
    found: str | None
    wanted: str = SCHEMA

    @property
    def is_current(self) -> bool:
        return self.found == self.wanted


def look(url: URL) -> Schema:
    """The state as it is; nothing is made.

    Raises:
        StoreFailed: the database can't be used.
    """
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return Schema(shown(url), None)  # opening it would make the file
    with _told(url):
        engine = connect(url)
        try:
            found = revision(engine)
        finally:
            engine.dispose()
    return Schema(shown(url), found)


def upgrade(url: URL) -> Schema:
    """Make the tables, or bring them up to date; returns the state before.

    Raises:
        StoreFailed: the database can't be used, or its tables are those of a newer program.
    """
    before = look(url)
    with _told(url):
        open_database(url).dispose()
    return before


@contextmanager
def _told(url: URL) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, OSError) as error:
        raise not_opened(url, reason(error)) from error
