"""A copy of a database shows one moment, and comes back as it was."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adapters.connect import Database, open_database
from adapters.database import AdapterRow, ScoreRow
from adapters.database_url import sqlite_url
from adapters.dump import check_empty, copy_in, copy_out, opened
from adapters.errors import InvalidInput
from adapters.registry import Registry

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def source(tmp_path: Path, database: str) -> Database:
    return Registry.open(tmp_path / "home").database


def add(database: Database, number: int) -> None:
    """An adapter with two scores, in one transaction."""
    with database.write() as session:
        session.add(AdapterRow(name=f"a{number}", project="p", task="generate", created=NOW))
        session.flush()
        session.add_all(
            ScoreRow(
                adapter=f"a{number}", number=1, request_id=f"{number}-{n}", score=0.5, who="",
                given=NOW,
            )
            for n in range(2)
        )  # fmt: skip


def test_a_copy_has_all_of_a_transaction_or_nothing_of_it(source: Database, tmp_path: Path) -> None:
    over, added = threading.Event(), [0]

    def write() -> None:
        while not over.is_set():
            add(source, added[0])
            added[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        for _ in range(8):
            copy_out(source.engine, tmp_path / "copy.db")
            with opened(tmp_path / "copy.db") as copy, Session(copy) as session:
                adapters = session.scalar(select(func.count()).select_from(AdapterRow))
                scores = session.scalar(select(func.count()).select_from(ScoreRow))
            assert scores == 2 * (adapters or 0)
            seen.add(adapters)
    finally:
        over.set()
        writer.join()
    assert len(seen) > 1  # it was written to meanwhile


def test_a_copy_is_one_file(source: Database, tmp_path: Path) -> None:
    add(source, 1)
    (tmp_path / "to").mkdir()
    copy_out(source.engine, tmp_path / "to" / "copy.db")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["copy.db"]
    with opened(tmp_path / "to" / "copy.db") as copy, Session(copy) as session:
        assert session.scalar(select(AdapterRow.name)) == "a1"
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["copy.db"]


def test_a_database_with_anything_in_it_is_not_filled(source: Database, tmp_path: Path) -> None:
    add(source, 1)
    copy_out(source.engine, tmp_path / "copy.db")
    with pytest.raises(InvalidInput, match="table adapters"):
        copy_in(tmp_path / "copy.db", source.engine)
    with source.read() as session:
        assert session.scalar(select(func.count()).select_from(ScoreRow)) == 2

    empty = open_database(sqlite_url(tmp_path / "empty.db"))
    copy_in(tmp_path / "copy.db", empty)
    with Session(empty) as session:
        assert session.scalar(select(func.count()).select_from(ScoreRow)) == 2
    with empty.connect() as connection, pytest.raises(InvalidInput, match="table adapters"):
        check_empty(connection)
