"""The database as it is opened: gone, back, locked, newer; reads beside writes."""

import socket
import sqlite3
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from adapters import connect
from adapters.database_url import parse_database_url, shown
from adapters.errors import StoreFailed
from adapters.registry import Registry
from tests.adapters.parcels import execute, registry_with
from tests.postgres import Postgres

SECRET = "hunter2"


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with two versions, the first live."""
    registry = registry_with(tmp_path, 2)
    registry.promote("x@1")
    return registry


@pytest.fixture
def address(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a PostgreSQL database that registries of this test use."""
    address = postgres.ready()
    monkeypatch.setenv("MODISTE_DATABASE_URL", address)
    return address


def test_a_database_that_goes_is_told_within_seconds_and_used_again_when_it_is_back(
    address: str, postgres: Postgres, tmp_path: Path
) -> None:
    registry = registry_with(tmp_path, 2)
    uses: list[Callable[[], object]] = [
        lambda: registry.find("x@1"), lambda: registry.promote("x@1"),
        registry.stamp, registry.revision, lambda: registry.renew("s", registry.versions("x")),
    ]  # fmt: skip
    for use in uses:
        use()
    postgres.kill()
    try:
        for use in uses:
            started = time.monotonic()
            with pytest.raises(StoreFailed, match="can't be used") as caught:
                use()
            assert time.monotonic() - started < 3
            assert "PostgreSQL runs" in caught.value.hint
    finally:
        postgres.start()

    for use in uses:
        use()
    assert registry.promote("x@2").number == 2
    assert [move.to_number for move in registry.alias_history("x")] == [1, 1, 2]


def test_a_restart_between_two_uses_is_not_noticed(
    address: str, postgres: Postgres, tmp_path: Path
) -> None:
    registry = registry_with(tmp_path, 1)
    before = registry.stamp()
    postgres.kill()
    postgres.start()

    assert registry.stamp() == before
    assert registry.promote("x@1").number == 1


def test_a_server_that_is_not_there_is_told_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", f"postgresql://ann:{SECRET}@127.0.0.1:1/x")

    with pytest.raises(StoreFailed, match=r"ann:\*\*\*@127.0.0.1:1/x can't be opened") as caught:
        Registry.open(tmp_path)
    assert "MODISTE_DATABASE_URL" in caught.value.hint
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_wrong_user_is_told_with_what_the_server_says(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", address.replace("postgres:@", f"eve:{SECRET}@"))

    with pytest.raises(StoreFailed, match='role "eve" does not exist') as caught:
        Registry.open(tmp_path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv(
            "MODISTE_DATABASE_URL", f"postgresql://a@127.0.0.1:{port}/x?connect_timeout=2"
        )
        started = time.monotonic()
        with pytest.raises(StoreFailed, match="timeout"):
            Registry.open(tmp_path)

    assert time.monotonic() - started < 5


def test_while_another_writes_reads_go_on_and_writes_wait_for_so_long_only(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_with(tmp_path, 1)
    monkeypatch.setattr(connect, "_SESSION", "SET lock_timeout = '0.3s'")
    registry = Registry.open(tmp_path / "home")
    with psycopg.connect(address) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [connect.WRITE_LOCK])
        assert registry.find("x@1").number == 1
        with pytest.raises(StoreFailed, match="lock timeout"):
            registry.promote("x@1")

    assert registry.promote("x@1").number == 1


def test_every_connection_has_its_limits_also_after_a_failed_transaction(
    address: str, tmp_path: Path
) -> None:
    registry = registry_with(tmp_path, 1)
    with pytest.raises(StoreFailed):
        execute(registry, "SELECT nothing_of_that_name")

    for name, value in (
        ("lock_timeout", "30s"), ("statement_timeout", "40s"),
        ("idle_in_transaction_session_timeout", "1min"),
    ):  # fmt: skip
        with registry.database.read() as session:
            assert session.connection().exec_driver_sql(f"SHOW {name}").scalar() == value


def test_a_read_sees_one_moment(registry: Registry) -> None:
    with registry.database.read() as session:
        first = registry._moves(session, "x")
        Registry.open(registry.home.root).promote("x@2")
        again = registry._moves(session, "x")

    assert len(first) == len(again) == 1
    assert len(registry.alias_history("x")) == 2


def test_tables_of_a_newer_program_are_left_alone(registry: Registry) -> None:
    execute(registry, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StoreFailed, match="newer program: 9999"):
        Registry.open(registry.home.root)


class Cursor:
    """Fails so often, as SQLite does while another process closes the file."""

    def __init__(self, code: int, failures: int) -> None:
        self.code, self.left = code, failures

    def execute(self, _statement: str) -> None:
        if self.left:
            self.left -= 1
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.code
            raise error


def test_a_file_that_another_process_closes_is_waited_for() -> None:
    closing, damaged = Cursor(sqlite3.SQLITE_BUSY, 3), Cursor(sqlite3.SQLITE_CORRUPT, 3)
    connect._log_ahead(closing)
    assert closing.left == 0
    with pytest.raises(sqlite3.OperationalError):
        connect._log_ahead(damaged)
    assert damaged.left == 2


def test_times_are_utc_wherever_the_database_is(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "MODISTE_DATABASE_URL", f"{postgres.ready()}&options=-c%20timezone%3DAsia%2FTokyo"
    )
    registry = registry_with(tmp_path, 1)
    with registry.database.read() as session:
        assert session.connection().exec_driver_sql("SHOW timezone").scalar() == "Asia/Tokyo"
    registry.promote("x@1")

    assert str(registry.alias_history("x")[0].moved.tzinfo) == "UTC"


def test_the_users_own_limits_of_a_connection_win(postgres: Postgres) -> None:
    url = parse_database_url(f"{postgres.ready()}&application_name=mine")
    engine = connect.open_database(url)

    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"
    engine.dispose()
    assert shown(url).startswith("postgresql://postgres")
