"""Whether something changed in the database, asked several times a second."""

import sqlite3
from threading import Lock
from typing import Protocol

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from adapters.connect import told
from adapters.database import AliasMoveRow
from adapters.errors import StoreFailed


class Watch(Protocol):
    """Gives another number whenever aliases, canaries or retirements may have changed."""

    waits: bool
    """Whether `stamp` waits for a network, and is not for an event loop."""

    def stamp(self) -> int: ...


def watch(database: Engine) -> Watch:
    return SqliteWatch(database) if database.dialect.name == "sqlite" else PostgresWatch(database)


class SqliteWatch:
    """Another number after every write of another connection, within microseconds."""

    waits = False

    def __init__(self, database: Engine) -> None:
        self._path = database.url.database or ""
        self._connection: sqlite3.Connection | None = None

    def stamp(self) -> int:
        """Not for several threads at once.

        Raises:
            StoreFailed: the database can't be read.
        """
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(
                    self._path, check_same_thread=False, isolation_level=None
                )
            row: tuple[int] = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise StoreFailed(
                f"the database can't be watched: {error}", hint=f"check {self._path}"
            ) from error
        return row[0]


class PostgresWatch:
    """The number of the last move, by a connection that stays open: one round trip."""

    waits = True

    def __init__(self, database: Engine) -> None:
        self._database = database.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._lock = Lock()

    def stamp(self) -> int:
        """Raises StoreFailed when the database can't be reached."""
        with self._lock, told(self._database):
            kept = self._connection is not None
            try:
                return self._ask()
            except DBAPIError:
                self._drop()
                if not kept:
                    raise
            # the kept connection broke, and the server may be back by now
            return self._ask()

    def _ask(self) -> int:
        if self._connection is None:
            self._connection = self._database.connect()
        last: int | None = self._connection.scalar(select(func.max(AliasMoveRow.id)))
        return 0 if last is None else last

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
