"""Versions and aliases: numbered once, moved atomically, whole after any crash."""

import multiprocessing
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from adapters.database import Table, open_database
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    InvalidName,
    Quarantined,
    VersionNotFound,
)
from adapters.registry import Registry
from tests.adapters.parcels import draft, parcel


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "home")


def _publish(registry: Registry, folder: Path, value: float, name: str = "x") -> str:
    parcel(folder, value)
    return registry.publish(folder, draft(folder, name)).reference


def test_equal_content_is_the_same_version_and_other_content_the_next(
    registry: Registry, tmp_path: Path
) -> None:
    references = [_publish(registry, tmp_path / str(n), v) for n, v in enumerate((1, 2, 1))]

    assert references == ["x@1", "x@2", "x@1"]
    assert [v.number for v in registry.versions("x")] == [1, 2]


def test_a_version_is_found_by_every_name(registry: Registry, tmp_path: Path) -> None:
    _publish(registry, tmp_path / "a", 1)
    registry.promote("x@1")
    registry.promote("x@1", "staging")
    digest = registry.find("x@1").digest

    names = ["x", "x@production", "x@staging", "x@1", f"x@{digest}", f"x@{digest[:19]}"]
    assert {registry.find(name).digest for name in names} == {digest}
    for unknown, kind in (
        ("y", AdapterNotFound), ("x@9", VersionNotFound), ("x@canary", AliasNotFound),
        ("x@sha256:00000000", VersionNotFound),
    ):  # fmt: skip
        with pytest.raises(kind):
            registry.find(unknown)


def test_moves_of_an_alias_are_on_record(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        _publish(registry, tmp_path / str(number), number)
    before = registry.revision()
    registry.promote("x@1", who="ann", why="first")
    registry.promote("x@2", who="bob", why="better")

    moves = [(m.from_number, m.to_number, m.who, m.why) for m in registry.alias_history("x")]
    assert moves == [(None, 1, "ann", "first"), (1, 2, "bob", "better")]
    assert registry.aliases("x") == {"production": 2}
    assert registry.revision() > before


def test_a_quarantined_version_is_not_promoted(registry: Registry, tmp_path: Path) -> None:
    _publish(registry, tmp_path / "a", 1)
    registry.quarantine(registry.find("x@1"), "does not reproduce its probe")

    with pytest.raises(Quarantined, match="does not reproduce"):
        registry.promote("x@1")
    assert registry.aliases("x") == {}


def test_equal_content_published_again_repairs_a_quarantined_version(
    registry: Registry, tmp_path: Path
) -> None:
    _publish(registry, tmp_path / "a", 1)
    version = registry.find("x@1")
    (version.folder / "adapter_model.safetensors").write_bytes(b"damaged")
    registry.quarantine(version, "altered")

    assert _publish(registry, tmp_path / "b", 1) == "x@1"
    again = registry.find("x@1")
    assert again.state == "ready"
    registry.store.verify(again.manifest)


def test_a_name_keeps_its_task(registry: Registry, tmp_path: Path) -> None:
    _publish(registry, tmp_path / "a", 1)
    folder = parcel(tmp_path / "b", 2)

    with pytest.raises(InvalidName):
        registry.publish(folder, draft(folder, "x", "answer"))


def test_publications_at_once_get_numbers_of_their_own(registry: Registry, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_publish, registry, tmp_path / str(n), n + 1) for n in range(12)]
        references = {job.result() for job in jobs}

    assert references == {f"x@{n}" for n in range(1, 13)}


def test_several_processes_may_open_a_new_home_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=open_database, args=(tmp_path / "h" / "modiste.db",))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0, 0]


def test_migrations_bring_an_empty_database_to_the_tables(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "modiste.db")

    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []


_CRASHING = """
import sys
from pathlib import Path
from adapters.registry import Registry
from tests.adapters.parcels import draft, parcel
registry, work, first = Registry.open(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for n in range(first, first + 1000):
    folder = parcel(work / str(n), n + 1)
    registry.promote(registry.publish(folder, draft(folder)).reference)
"""


def test_killed_at_any_point_every_version_is_whole_and_every_alias_points_at_one(
    tmp_path: Path,
) -> None:
    home, dice = tmp_path / "home", random.Random(7)
    for kill in range(12):
        command = [
            sys.executable,
            "-c",
            _CRASHING,
            str(home),
            str(tmp_path / "w"),
            str(kill * 1000),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0, 0.4))
        process.kill()
        process.wait()

        registry = Registry.open(home)
        versions = registry.versions("x") if registry.adapters() else []
        for version in versions:
            registry.store.verify(version.manifest)
        assert [v.number for v in versions] == list(range(1, len(versions) + 1))
        for number in registry.aliases("x").values() if versions else ():
            assert registry.find(f"x@{number}").number == number
    assert len(versions) > 5  # it did work between the kills
