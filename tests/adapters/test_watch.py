"""Whether a change is noticed, cheaply."""

import threading
from pathlib import Path

import pytest

from adapters.registry import Registry
from tests.adapters.parcels import registry_with
from tests.postgres import Postgres


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with two versions."""
    return registry_with(tmp_path, 2)


def test_what_another_process_moves_is_noticed_and_nothing_else(registry: Registry) -> None:
    registry.promote("x@1")
    other = Registry.open(registry.home.root)
    stamps = [registry.stamp(), registry.stamp()]
    for move in (
        lambda: other.promote("x@2"), lambda: other.rollback("x"),
        lambda: other.start_canary("x@2", 10), lambda: other.end_canary("x", promote=False),
    ):  # fmt: skip
        move()
        stamps += [registry.stamp(), registry.stamp()]

    assert stamps[::2] == stamps[1::2]
    assert len(set(stamps)) == 5


def test_only_a_network_is_waited_for(registry: Registry, database: str) -> None:
    assert registry.stamp_waits == (database == "postgresql")


def test_one_connection_serves_all_looks_of_all_threads(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", postgres.ready())
    registry = Registry.open(tmp_path)
    threads = [threading.Thread(target=registry.stamp) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert registry.database.engine.pool.checkedout() == 1
