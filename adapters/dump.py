"""A database as one file of SQLite, whichever it is, and back into an empty one.

A copy shows the database as it was at one moment, while others go on writing.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql import REGCLASS

from adapters.connect import for_reads, for_writes, open_database, told
from adapters.database import Table
from adapters.database_url import sqlite_url
from adapters.errors import InvalidInput

ROWS = 1000
"""Of one statement."""


def copy_out(source: Engine, place: Path) -> None:
    """Write a copy to a new file, with all tables that the program knows.

    Raises:
        StoreFailed: the database can't be read.
        OSError, sqlite3.Error: the file can't be written.
    """
    place.unlink(missing_ok=True)
    if source.dialect.name == "sqlite":
        with (
            closing(sqlite3.connect(str(source.url.database))) as here,
            closing(sqlite3.connect(place)) as there,
        ):
            here.backup(there)  # in one step: writes in between would make it begin again
    else:
        target = open_database(sqlite_url(place))
        with told(source), for_reads(source).connect() as here, target.begin() as there:
            _copy_rows(here, there)
        target.dispose()
        place.with_suffix(".lock").unlink(missing_ok=True)
    with closing(sqlite3.connect(place)) as file:
        file.execute("PRAGMA journal_mode=DELETE")  # nothing of it lies in a second file


def copy_in(place: Path, target: Engine) -> None:
    """Fill an empty database; all of it or nothing is there then.

    Raises:
        InvalidInput: it is not empty.
        StoreFailed: it can't be written.
    """
    source = open_database(sqlite_url(place))
    with told(target), source.connect() as here, for_writes(target).begin() as there:
        check_empty(there)
        _copy_rows(here, there)
        if target.dialect.name == "postgresql":
            _go_on_counting(there)
    source.dispose()


def check_empty(connection: Connection) -> None:
    """Raises InvalidInput where a database has anything but tables."""
    for table in Table.metadata.sorted_tables:
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise InvalidInput(
                f"the database is not empty: there is something in its table {table.name}",
                hint="name an empty one by MODISTE_DATABASE_URL or database_url; nothing that is "
                "there is ever overwritten",
                param="database_url",
            )


def _copy_rows(here: Connection, there: Connection) -> None:
    for table in Table.metadata.sorted_tables:
        found = here.execution_options(yield_per=ROWS).execute(sa.select(table))
        for rows in found.mappings().partitions():
            there.execute(sa.insert(table), [dict(row) for row in rows])


def _go_on_counting(connection: Connection) -> None:
    """PostgreSQL counts apart from what is there: let it go on after the last number."""
    for table in Table.metadata.sorted_tables:
        for column in table.primary_key.columns:
            name = {"table": table.name, "column": column.name}
            ask = sa.text("SELECT pg_get_serial_sequence(:table, :column)")
            whole = isinstance(column.type, sa.Integer)
            if whole and (sequence := connection.scalar(ask, name)):
                last = sa.select(sa.func.max(column)).scalar_subquery()
                counter = sa.cast(sequence, REGCLASS)
                connection.execute(sa.select(sa.func.setval(counter, last)).where(last > 0))


@contextmanager
def opened(place: Path) -> Iterator[Engine]:
    """A copy, to look at and to correct."""
    engine = open_database(sqlite_url(place))
    try:
        yield engine
    finally:
        engine.dispose()
        with closing(sqlite3.connect(place)) as file:
            file.execute("PRAGMA journal_mode=DELETE")
        place.with_suffix(".lock").unlink(missing_ok=True)
