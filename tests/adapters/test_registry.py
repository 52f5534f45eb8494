"""Versions and aliases: numbered once, moved atomically, whole after any crash."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import service.database  # noqa: F401 - its tables are in the same database
from adapters.connect import open_database
from adapters.database import Table
from adapters.database_url import find_database
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    InvalidName,
    Quarantined,
    Removed,
    StoreFailed,
    VersionNotFound,
)
from adapters.home import Home
from adapters.registry import Registry
from tests.adapters.parcels import draft, execute, parcel, registry_with

PROCESSES = multiprocessing.get_context("forkserver")  # starts them in milliseconds
PROCESSES.set_forkserver_preload([__name__])


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
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


def test_a_digest_that_begins_two_versions_is_ambiguous(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        _publish(registry, tmp_path / str(number), number)
    execute(registry, "UPDATE versions SET digest = 'sha256:00000000' || number")

    with pytest.raises(VersionNotFound, match="ambiguous"):
        registry.find("x@sha256:00000000")


def test_another_registry_sees_everything(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        _publish(registry, tmp_path / str(number), number)
    registry.promote("x@1", who="ann")
    registry.quarantine(registry.find("x@2"), "altered")

    again = Registry.open(registry.home.root)

    assert again.versions("x") == registry.versions("x")
    assert again.adapters() == registry.adapters()
    assert again.alias_history("x") == registry.alias_history("x")
    assert again.find("x@2").reason == "altered"


def test_a_damaged_database_is_a_failed_store(registry: Registry, tmp_path: Path) -> None:
    _publish(registry, tmp_path / "a", 1)
    execute(registry, "DROP TABLE alias_moves")

    with pytest.raises(StoreFailed, match="alias_moves"):
        registry.promote("x@1")
    assert registry.aliases("x") == {}  # the move was one transaction
    with pytest.raises(StoreFailed):
        registry.revision()


def test_a_home_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "modiste.db").write_bytes(b"no database at all, but long enough to look" * 30)

    with pytest.raises(StoreFailed, match="MODISTE_HOME"):
        Registry.open(tmp_path)


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


def test_a_claimed_name_is_nobody_elses_and_no_adapter_yet(
    registry: Registry, tmp_path: Path
) -> None:
    registry.claim("x", "ours", "generate")
    registry.claim("x", "ours", "generate")  # its own
    for project, task in (("theirs", "generate"), ("ours", "answer")):
        with pytest.raises(InvalidName, match="'x'"):
            registry.claim("x", project, task)
    folder = parcel(tmp_path / "a", 1)
    with pytest.raises(InvalidName, match="taken"):
        registry.publish(folder, draft(folder, "x"))
    assert registry.adapters() == []

    registry.publish(folder, draft(folder, "x", project="ours"))
    assert [(a.name, a.project) for a in registry.adapters()] == [("x", "ours")]


def test_publications_at_once_get_numbers_of_their_own(registry: Registry, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_publish, registry, tmp_path / str(n), n + 1) for n in range(12)]
        references = {job.result() for job in jobs}

    assert references == {f"x@{n}" for n in range(1, 13)}


@pytest.fixture
def home(tmp_path: Path, database: str) -> Path:
    """A home whose settings name the database: other processes have another environment."""
    home = tmp_path / "home"
    home.mkdir()
    if database == "postgresql":
        (home / "modiste.yaml").write_text(f"database_url: {os.environ['MODISTE_DATABASE_URL']}\n")
    return home


def _at_once(*calls: tuple[Callable[..., None], tuple[object, ...]]) -> list[int | None]:
    """Run each in a process of its own; their exit codes."""
    processes = [PROCESSES.Process(target=work, args=arguments) for work, arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _publish_many(home: Path, work: Path, first: int) -> None:
    registry = Registry.open(home)
    for number in range(first, first + 5):
        reference = _publish(registry, work / str(number), number + 1)
        registry.promote(reference, who=reference)


def test_processes_that_publish_and_promote_at_once_lose_nothing(
    home: Path, tmp_path: Path
) -> None:
    firsts = (0, 100, 200, 300)

    assert _at_once(*[(_publish_many, (home, tmp_path / "w", n)) for n in firsts]) == [0] * 4

    registry = Registry.open(home)
    versions = registry.versions("x")
    assert [version.number for version in versions] == list(range(1, 21))
    assert len({version.digest for version in versions}) == 20
    moves = registry.alias_history("x")
    assert sorted(move.to_number for move in moves) == list(range(1, 21))
    assert {move.who for move in moves} == {version.reference for version in versions}
    # each move starts where the one before it ended
    assert [m.from_number for m in moves] == [None, *(m.to_number for m in moves[:-1])]
    assert registry.aliases("x") == {"production": moves[-1].to_number}


def _lease_many(home: Path) -> None:
    registry = Registry.open(home)
    for version in registry.versions("x"):
        try:
            registry.lease("server", version)
        except Removed:
            continue
        registry.store.verify(version.manifest)
    registry.store.verify(registry.find("x@20").manifest)


def _collect_many(home: Path) -> None:
    registry = Registry.open(home)
    for keep in range(19, 0, -1):
        registry.collect(keep=keep, older_than_days=0)


def test_what_is_leased_while_another_process_collects_is_whole(home: Path, tmp_path: Path) -> None:
    registry = Registry.open(home)
    for number in range(1, 21):
        _publish(registry, tmp_path / str(number), number)

    assert _at_once(*[(_lease_many, (home,))] * 3, (_collect_many, (home,))) == [0] * 4

    for version in registry.versions("x"):
        if version.state == "ready":
            registry.store.verify(version.manifest)


def _open(home: Path) -> None:
    assert Registry.open(home).adapters() == []


def test_several_processes_may_open_a_new_database_at_once(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    if database == "postgresql":
        url = request.getfixturevalue("postgres").empty()
        (tmp_path / "modiste.yaml").write_text(f"database_url: {url}\n")

    assert _at_once(*[(_open, (tmp_path,))] * 4) == [0] * 4


@pytest.mark.usefixtures("database")
def test_migrations_bring_an_empty_database_to_the_tables(tmp_path: Path) -> None:
    engine = open_database(find_database(Home(tmp_path)))

    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []


def _publish_and_promote(home: Path, work: Path, first: int, begun: Connection) -> None:
    registry = Registry.open(home)
    for number in range(first, first + 1000):
        registry.promote(_publish(registry, work / str(number), number + 1))
        if number == first:
            begun.send("at work")


def test_killed_at_any_point_every_version_is_whole_and_every_alias_points_at_one(
    home: Path, tmp_path: Path
) -> None:
    dice = random.Random(7)
    for kill in range(25):
        here, there = PROCESSES.Pipe()
        arguments = (home, tmp_path / "w", kill * 1000, there)
        process = PROCESSES.Process(target=_publish_and_promote, args=arguments)
        process.start()
        assert here.recv() == "at work"
        time.sleep(dice.uniform(0, 0.15))
        process.kill()
        process.join()

        registry = Registry.open(home)
        versions = registry.versions("x")
        for version in versions:
            registry.store.verify(version.manifest)
        numbers = [version.number for version in versions]
        assert numbers == list(range(1, len(versions) + 1))
        moves = registry.alias_history("x")
        assert registry.all_aliases() == {("x", "production"): moves[-1].to_number}
        assert {move.to_number for move in moves} <= set(numbers)
    assert len(versions) > 25  # it was at work when it was killed


def test_a_fine_tuned_models_name_finds_its_version_and_no_other_bases_or_projects(
    tmp_path: Path,
) -> None:
    registry = registry_with(tmp_path, 2)
    name = registry.find("x@2").fine_tuned_model
    assert registry.find(name).number == 2

    assert name.startswith("ft:b:default:x:")
    for wrong in (name.replace(":b:", ":c:"), name.replace(":default:", ":other:")):
        with pytest.raises(VersionNotFound):
            registry.find(wrong)
