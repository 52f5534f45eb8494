"""How the database is opened, brought up to date, read and written.

Writes follow one another in all processes: SQLite by its write lock, PostgreSQL by an
advisory lock that a transaction takes first and holds to its end.
"""

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from adapters.database import SCHEMA
from adapters.database_url import shown
from adapters.errors import InvalidInput, StoreFailed

WRITE_LOCK = 0x6D6F6469737465
"""Key of the advisory lock, `modiste` in ASCII; each database has its own."""

LOCK_WAIT_S = 30
"""Longest wait for another process's write."""

_HINTS = {
    "sqlite": "free disk space, end what locks modiste.db, or restore it from a backup",
    "postgresql": "check that PostgreSQL runs, can be reached and has free disk space; "
    "see database_url",
}

# A server that is gone must be noticed within seconds, also where no packet comes back.
_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
    "application_name": "modiste",
}  # fmt: skip

# The last ends a transaction whose machine vanished while it held the write lock.
_SESSION = f"""
    SET lock_timeout = '{LOCK_WAIT_S}s';
    SET statement_timeout = '{LOCK_WAIT_S + 10}s';
    SET idle_in_transaction_session_timeout = '{2 * LOCK_WAIT_S}s'
"""


COUNT_WAIT_S, COUNT_CONNECTIONS = 2, 4
_COUNT_SESSION = f"""
    SET lock_timeout = '{COUNT_WAIT_S}s';
    SET statement_timeout = '{COUNT_WAIT_S}s';
    SET idle_in_transaction_session_timeout = '{COUNT_WAIT_S}s';
    SET synchronous_commit = off
"""


def open_database(url: URL) -> Engine:
    """Open a database; one process at a time creates or upgrades its tables.

    Raises:
        StoreFailed: the tables are those of a newer program.
        OSError, sqlalchemy.exc.DBAPIError: it can't be opened.
    """
    engine = connect(url)
    current = revision(engine)
    if current is not None and current > SCHEMA:
        raise StoreFailed(
            f"the database has the tables of a newer program: {current}, here {SCHEMA}",
            hint="run the newer program here too, or restore the backup from before it",
        )
    if current != SCHEMA:
        with _alone(engine):
            _upgrade(engine)
    return engine


def connect(url: URL) -> Engine:
    """An engine for a database as it is; its tables are not looked at."""
    return _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)


def revision(engine: Engine) -> str | None:
    """Which tables a database has; None: none yet."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def for_reads(engine: Engine) -> Engine:
    """Each of its transactions sees the database as it was at one moment."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def for_writes(engine: Engine) -> Engine:
    """Each of its transactions sees all that those before it wrote."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(writes=True)
    # not a stricter level: its view would date from before the wait for the lock
    return engine.execution_options(isolation_level="READ COMMITTED", writes=True)


def for_counts(url: URL) -> Engine:
    """An engine of its own for counts that requests wait for.

    It waits for nothing long, neither another's write in PostgreSQL nor a disk: what it wrote last
    may be lost with the machine.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": COUNT_WAIT_S})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "connect", _leave_sqlite_to_the_system)
        event.listen(engine, "begin", _begin_sqlite)
        return for_writes(engine)
    given = {key: value for key, value in _CONNECT.items() if key not in url.query}
    given["connect_timeout"] = COUNT_WAIT_S
    engine = create_engine(
        url, connect_args=given, pool_size=COUNT_CONNECTIONS, max_overflow=0,
        pool_timeout=COUNT_WAIT_S, isolation_level="AUTOCOMMIT",
    )  # fmt: skip
    event.listen(engine, "connect", _configure_counts)
    return engine


class Database:
    """A database that is open: its transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reads, self._writes = for_reads(engine), for_writes(engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees the database as it was at one moment.

        Raises:
            StoreFailed: the database can't be used.
        """
        with told(self._reads), Session(self._reads, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that no other write, of any process, overlaps.

        Raises:
            StoreFailed: the database can't be used; nothing was written.
        """
        with (
            told(self._writes),
            Session(self._writes, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def now(self, session: Session) -> float:
        """Seconds since 1970 by the clock that all on this database share, however theirs go."""
        if self.engine.dialect.name == "sqlite":  # a file, and they are on its machine
            return time.time()
        return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)


@contextmanager
def told(engine: Engine) -> Iterator[None]:
    """What the database can't do is a `StoreFailed`: locked, full, damaged, gone."""
    try:
        yield
    except DataError as error:  # such as a text with NUL, which PostgreSQL doesn't take
        raise InvalidInput(
            f"the database can't take a value: {reason(error)}",
            hint="send text without control characters, and smaller numbers",
        ) from error
    except (DBAPIError, PoolTimeout) as error:
        raise StoreFailed(
            f"the database can't be used: {reason(error)}", hint=_HINTS[engine.dialect.name]
        ) from error


def not_opened(url: URL, said: str) -> StoreFailed:
    """What a database that can't be opened is to whoever asked, with the remedy."""
    return StoreFailed(
        f"the database {shown(url)} can't be opened: {said}",
        hint="check that it runs and lets this user in and make tables; "
        "its address is database_url in modiste.yaml or MODISTE_DATABASE_URL",
    )


def reason(error: Exception) -> str:
    """What the database said, in one line."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(said).split())


def _sqlite(url: URL) -> Engine:
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": LOCK_WAIT_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event opens transactions
    cursor = connection.cursor()
    _log_ahead(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _log_ahead(cursor: Any) -> None:
    """Waits for others: the busy timeout doesn't hold where one of them just closes the file."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Any) -> None:
    immediate = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _leave_sqlite_to_the_system(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def _configure_counts(connection: Any, _record: Any) -> None:
    connection.autocommit = True
    connection.execute(_COUNT_SESSION)


def _postgresql(url: URL) -> Engine:
    given = {key: value for key, value in _CONNECT.items() if key not in url.query}
    engine = create_engine(
        url, connect_args=given, pool_pre_ping=True, pool_timeout=10, max_overflow=5
    )
    event.listen(engine, "connect", _configure_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _configure_postgresql(connection: Any, _record: Any) -> None:
    connection.autocommit = True  # else a rollback would take the settings back
    connection.execute(_SESSION)
    connection.autocommit = False


def _begin_postgresql(connection: Any) -> None:
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Several processes may start at once: one upgrades and the others wait.

    On PostgreSQL the upgrade's own transaction sees to that.
    """
    if engine.dialect.name != "sqlite":
        yield
        return
    with Path(engine.url.database or "").with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _upgrade(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with for_writes(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
