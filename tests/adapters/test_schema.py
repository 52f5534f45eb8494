"""Bringing the tables of a database up to date apart from a server's start."""

import sqlite3
from pathlib import Path

import pytest

from adapters.database import SCHEMA
from adapters.database_url import find_database, parse_database_url, sqlite_url
from adapters.errors import StoreFailed
from adapters.home import Home
from adapters.registry import Registry
from adapters.schema import look, upgrade
from tests.adapters.test_connect import SECRET
from tests.postgres import Postgres


def test_looking_makes_no_database(tmp_path: Path) -> None:
    found = look(sqlite_url(tmp_path / "modiste.db"))

    assert (found.found, found.wanted, found.is_current) == (None, SCHEMA, False)
    assert list(tmp_path.iterdir()) == []


def test_an_upgrade_makes_the_tables_that_a_registry_then_uses(tmp_path: Path) -> None:
    url = find_database(Home(tmp_path))

    assert upgrade(url).found is None
    assert look(url).is_current
    assert upgrade(url).is_current
    assert Registry.open(tmp_path).bases() == []


def test_postgresql_is_looked_at_and_upgraded(postgres: Postgres) -> None:
    url = parse_database_url(postgres.empty())

    assert look(url).found is None
    assert upgrade(url).found is None
    assert look(url).found == SCHEMA
    assert "***" in look(url).database or "@" not in look(url).database


def test_tables_of_a_newer_program_are_shown_and_left_alone(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "modiste.db")
    upgrade(url)
    with sqlite3.connect(tmp_path / "modiste.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")

    assert look(url).found == "9999"
    with pytest.raises(StoreFailed, match="newer program"):
        upgrade(url)
    assert look(url).found == "9999"


def test_a_database_that_is_away_is_told_without_its_password() -> None:
    url = parse_database_url(f"postgresql://me:{SECRET}@127.0.0.1:9/x")

    for act in (look, upgrade):
        with pytest.raises(StoreFailed, match="can't be opened") as caught:
            act(url)
        assert SECRET not in str(caught.value)
        assert caught.value.retryable
