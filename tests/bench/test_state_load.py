"""What servers ask of database and store, counted where they ask it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from adapters.compatibility import Takes
from adapters.manifest import BaseRef
from adapters.registry import Registry
from adapters.remote import PIECE_BYTES, Remote
from adapters.store import VERSION_FILES
from bench.state_load import (
    LEASE_STATEMENTS,
    LOOK_UP_STATEMENTS,
    OTHER_FILES,
    TASKS,
    Activity,
    gets_of,
)
from service import survey
from service.batches.queue import Batches
from service.files import Files
from service.jobs.leased import LeasedJobs
from service.keys import Keys
from service.projects import Projects
from service.uploads import Uploads
from service.usage import Counts, Ledger, Line
from service.uses import USES
from tests.adapters.remotes import publish, shared
from tests.postgres import Postgres

TAKES = Takes(
    base=BaseRef.model_construct(fingerprint="f"), max_rank=16, target_modules=frozenset(),
    process=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def registry(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """On PostgreSQL, with three versions of an adapter and a server that holds two of them."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODISTE_DATABASE_URL", postgres.ready())
        registry = Registry.open(folder / "home")
        for value in (1, 2, 3):
            publish(registry, folder, value)
        for number in (1, 2):
            registry.lease("another", registry.find(f"x@{number}"))
        registry.announce("here", TAKES)
        yield registry


@contextmanager
def counted() -> Iterator[list[str]]:
    """Statements that are sent meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def a_report(registry: Registry) -> Callable[[], None]:
    """A report that is not the server's first."""
    ledger = Ledger(registry.database)

    def send() -> None:
        for model in ("x@1", "x@2"):
            ledger._lines[Line(date(2026, 1, 1), "p", "k", model, "/v1")] = Counts(requests=1)
        asyncio.run(ledger.send())

    send()
    return send


def work_of(name: str, registry: Registry) -> Callable[[], Any]:
    """What a server does under the name, with nothing to be found."""
    database = registry.database
    files = Files(database, registry.home, USES)
    leased = LeasedJobs(database, 30.0)
    both = [registry.find(f"x@{number}") for number in (1, 2)]
    every: dict[str, Callable[[], Any]] = {
        "aliases": registry.stamp,
        "keys": Keys(database).by_digest,
        "limits": lambda: (Keys(database).limited(), Projects(database).limited()),
        "batches": Batches(database).waiting,
        "jobs": lambda: (leased.put_back_late(), leased.line(50)),
        "database": registry.revision,
        "retirements": lambda: registry.out_of_use(both),
        "survey": lambda: survey.find(database),
        "server": lambda: registry.announce("here", TAKES),
        "leases": lambda: registry.renew("here", both),
        "wanted": lambda: registry.wanted("here", 10),
        "expired": lambda: (Uploads(database, files).expire(), files.expire()),
    }
    return a_report(registry) if name == "usage" else every[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_sends_as_many_statements_as_the_page_says(name: str, registry: Registry) -> None:
    work = work_of(name, registry)
    work()

    with counted() as sent:
        work()

    locks = [statement for statement in sent if "pg_advisory_xact_lock" in statement]
    assert len(sent) == TASKS[name].statements, sent
    assert bool(locks) is TASKS[name].writes


def test_a_version_that_is_loaded_is_leased_by_so_many_statements(registry: Registry) -> None:
    version = registry.find("x@3")
    with counted() as sent:
        registry.lease("one that loads", version)

    assert len(sent) == LEASE_STATEMENTS, sent


def test_a_version_is_looked_up_by_so_many_statements(registry: Registry) -> None:
    with counted() as sent:
        registry.project("x")
        registry.find("x@1")

    assert len(sent) == LOOK_UP_STATEMENTS, sent


@pytest.mark.parametrize("work", ["leases", "wanted", "retirements"])
def test_more_versions_send_no_more_statements(work: str, registry: Registry) -> None:
    one, three = ([registry.find(f"x@{n}") for n in numbers] for numbers in ((1,), (1, 2, 3)))
    call: Callable[[Any], Any] = {
        "leases": lambda versions: registry.renew("there", versions),
        "wanted": lambda versions: registry.wanted("nobody", len(versions)),
        "retirements": registry.out_of_use,
    }[work]
    with counted() as few:
        call(one)
    with counted() as many:
        call(three)

    assert len(few) == len(many)


def test_making_room_reads_of_the_database_only_what_the_cache_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = shared(tmp_path, f"file://{_folder(tmp_path / 'remote')}", "here", "there")
    for name in ("x", "y", "z"):
        publish(here, tmp_path, 1, name)
    there.verified("x@1")
    monkeypatch.setenv("MODISTE_STORE_CACHE_GIB", "0.000000001")

    with counted() as sent:
        states, _ = there._uses({entry.name for entry in there.store.cached()})
        loaded = [name for name, _ in states]
        there.make_room(0)

    assert loaded == ["x"]
    selects = [statement for statement in sent if statement.startswith("SELECT")]
    assert len(selects) == 4
    assert [statement for statement in selects if "IN (" not in statement] == []


def test_a_version_is_fetched_by_so_many_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = shared(tmp_path, f"file://{_folder(tmp_path / 'remote')}", "here", "there")
    publish(here, tmp_path, 1)
    asked = []
    ask = Remote._ask

    def note(self: Remote, doing: str, *arguments: Any, **more: Any) -> Any:
        asked.append(doing)
        return ask(self, doing, *arguments, **more)

    monkeypatch.setattr(Remote, "_ask", note)
    version = there.verified("x@1")

    files = version.manifest.files
    sizes = [(version.folder / file).stat().st_size for file in files]
    assert len(asked) == 1 + sum(1 + ceil(size / PIECE_BYTES) for size in sizes)
    weights = (version.folder / "adapter_model.safetensors").stat().st_size
    spared = 2 * (OTHER_FILES - (len(files) - 1))  # this one has no reports
    assert gets_of(weights) == len(asked) + spared
    assert len(VERSION_FILES) - 1 >= OTHER_FILES


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_lock_is_held_longer_by_more_servers_rows_and_loads() -> None:
    few = Activity(10, 1000, 100.0, 0.0, 500, 84_000_000)
    for more in (
        Activity(20, 1000, 200.0, 0.0, 500, 84_000_000),
        Activity(10, 1000, 100.0, 50.0, 500, 84_000_000),
        Activity(10, 1000, 100.0, 0.0, 900, 84_000_000),
    ):
        assert more.writing > few.writing


def test_a_server_leases_no_more_than_there_is() -> None:
    activity = Activity(2, 300, 100.0, 90.0, 500, 84_000_000)

    assert activity.leased == 300
