"""A project that is deleted is gone, whatever breaks on the way; others notice nothing."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from adapters.audit import Act
from adapters.connect import Database
from adapters.database import AuditRow, Table
from adapters.errors import InvalidInput, StoreFailed
from adapters.registry import Registry
from adapters.remote import Remote
from service import deletion
from service.auth import Authenticator
from service.batches.queue import Batches
from service.cli import app
from service.database import KeyRow
from service.deletion import Deletion
from service.errors import InUse, Unauthenticated
from service.files import About
from service.holdings import all_holdings
from service.jobs.queue import Jobs
from service.keys import Keys
from tests.adapters.remotes import BUCKET, s3_client, s3_server
from tests.service.filled import files_of, fill

TEXT = "the text of ours"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "LOOK_S", 0.01)


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    with s3_server() as address:
        s3_client(address).create_bucket(Bucket=BUCKET)
        yield address


def eraser(registry: Registry) -> Deletion:
    return Deletion(registry, files_of(registry))


def rows(registry: Registry, word: str, but: tuple[str, ...] = ()) -> list[str]:
    """Tables with a row that has a word anywhere."""
    with registry.database.read() as session:
        return [
            table.name
            for table in Table.metadata.sorted_tables
            if table.name not in but
            and any(word in repr(tuple(row)) for row in session.execute(select(table)))
        ]


STAYS = ("projects", "api_keys", "audit")


def traces(registry: Registry) -> list[str]:
    """What is left of the project `ours`: tables, and files here and elsewhere."""
    found = rows(registry, "ours", but=STAYS)
    for path in registry.home.root.rglob("*"):
        if path.is_file() and "modiste.db" not in path.name:
            name = str(path.relative_to(registry.home.root))
            found += [name] if "ours" in name or TEXT in _read(path) else []
    for remote in (files_of(registry).contents, registry.store.remote):
        if remote is not None:
            found += [
                key for key in remote.files()
                if "ours" in key or TEXT in remote.read(key).decode(errors="replace")
            ]  # fmt: skip
    return found


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def others(registry: Registry) -> dict[str, int]:
    return all_holdings(registry.database)["theirs"].has


def entries(registry: Registry, act: Act) -> list[AuditRow]:
    with registry.database.read() as session:
        return list(session.scalars(select(AuditRow).where(AuditRow.act == act)))


@pytest.fixture(params=["sqlite", "postgresql", "s3"])
def full(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """Two projects that have everything: on each database, and with stores elsewhere."""
    if request.param == "postgresql":
        monkeypatch.setenv("MODISTE_DATABASE_URL", request.getfixturevalue("postgres").ready())
    elif request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_address"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("MODISTE_STORE_URL", f"s3://{BUCKET}/{tmp_path.name}/store")
        monkeypatch.setenv("MODISTE_FILES_URL", f"s3://{BUCKET}/{tmp_path.name}/files")
    registry = Registry.open(tmp_path / "home")
    for project in ("theirs", "ours"):
        fill(registry, tmp_path, project)
    return registry


def test_all_that_a_project_has_goes_and_others_keep_theirs(full: Registry) -> None:
    assert all_holdings(full.database)["ours"].has == dict.fromkeys(others(full), 1)
    assert len(traces(full)) > 15
    before, told = others(full), list[str]()

    gone = eraser(full).delete("ours", tell=told.append)

    assert traces(full) == []
    assert gone == {
        "files": 1, "uploads": 1, "batches": 1, "jobs": 1, "versions": 1, "usage": 1
    }  # fmt: skip
    assert set(told) == {f"removed 1 {what}" for what in gone if what != "usage"}
    assert others(full) == before
    assert full.verified("of-theirs@production").number == 1
    (entry,) = entries(full, Act.PROJECT_DELETED)
    assert (entry.what, entry.project, entry.details) == ("ours", "ours", {"removed": gone})
    (begun,) = entries(full, Act.PROJECT_DELETING)
    assert begun.details == {"has": before}
    assert eraser(full).delete("ours") == {}
    assert len(entries(full, Act.PROJECT_DELETED)) == 1


def test_no_key_opens_anything_and_no_door_is_left_open(tmp_path: Path, database: str) -> None:
    registry = Registry.open(tmp_path / "home")
    secret = fill(registry, tmp_path, "ours")
    eraser(registry).delete("ours")
    authenticator = Authenticator([], Keys(registry.database))
    for given in (f"Bearer {secret}", None):
        with pytest.raises(Unauthenticated):
            authenticator.caller(given)
    with registry.database.read() as session:
        assert [key.name for key in session.scalars(select(KeyRow))] == [""]


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End before or after what is written: transactions, contents, folders."""
    left = [calls]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def counted(of: Any, name: str) -> None:
        original = getattr(of, name)

        def call(*arguments: Any, **more: Any) -> Any:
            count()
            answer = original(*arguments, **more)
            count()
            return answer

        patch.setattr(of, name, call)

    write = Database.write

    @contextmanager
    def transaction(self: Database) -> Iterator[Session]:
        count()
        with write(self) as session:
            yield session
            count()  # all is said, nothing is committed
        count()

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", transaction)
        counted(Remote, "remove")
        counted(shutil, "rmtree")
        yield


@pytest.mark.parametrize(
    "full",
    ["sqlite", "postgresql", pytest.param("s3", marks=pytest.mark.slow)],
    indirect=True,
)
def test_ended_between_any_two_writes_it_goes_on_to_the_end(
    full: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call gets a little further than the one before it, and then is killed."""
    before, kills = others(full), 0
    while True:
        with killed_after(3 + kills, monkeypatch):
            try:
                eraser(full).delete("ours")
                break
            except Killed:
                kills += 1
    assert kills > 3
    assert traces(full) == []
    assert others(full) == before
    assert len(entries(full, Act.PROJECT_DELETED)) == 1
    assert len(entries(full, Act.KEY_REVOKED)) == 1


def _delete(home: Path, begun: Any) -> None:
    registry = Registry.open(home)
    begun.send("at work")
    eraser(registry).delete("ours")


def test_killed_at_any_moment_it_goes_on_to_the_end(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    for project in ("theirs", "ours"):
        fill(registry, tmp_path, project, many=6)
    before, dice, context = others(registry), random.Random(5), get_context("fork")
    for _ in range(4):
        here, there = context.Pipe()
        process = context.Process(target=_delete, args=(registry.home.root, there))
        process.start()
        assert here.recv() == "at work"
        time.sleep(dice.uniform(0.0, 0.15))
        process.kill()
        process.join()
    eraser(registry).delete("ours")
    assert traces(registry) == []
    assert others(registry) == before


def test_work_that_somebody_is_at_is_cancelled_and_waited_for(
    tmp_path: Path, database: str
) -> None:
    registry, told = Registry.open(tmp_path / "home"), list[str]()
    fill(registry, tmp_path, "ours")
    jobs, queue = Jobs(registry.database), Batches(registry.database)
    (job,), _ = jobs.page("ours", after=None, limit=1, metadata=None)
    jobs.lease("worker", job.id)
    batch = queue.lease("server")
    assert batch is not None

    def obey() -> None:
        if jobs.renew(job.id, "worker") == "cancel":
            jobs.give_back(job.id, "worker")
        if queue.renew(batch.id, "server").status == "cancelling":
            queue.give_back(batch.id, "server")

    with pytest.raises(InUse, match=r"did not end in time") as caught:
        eraser(registry).delete("ours", told.append, patience_s=0.05)
    assert (caught.value.code, told[0]) == (
        "project_in_use", f"waiting for 2 to end: {job.id}, {batch.id}",
    )  # fmt: skip
    assert all_holdings(registry.database)["ours"].has["files"] == 1
    Timer(0.2, obey).start()
    eraser(registry).delete("ours", told.append, patience_s=20)
    assert traces(registry) == []


def test_a_dead_workers_job_and_a_dead_servers_batch_are_not_waited_for(
    tmp_path: Path, database: str
) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "ours")
    jobs = Jobs(registry.database, lease_s=0)
    queue = Batches(registry.database, lease_s=0)
    assert jobs.lease("dead") is not None
    assert queue.lease("dead") is not None
    time.sleep(0.01)
    eraser(registry).delete("ours", patience_s=0)
    assert traces(registry) == []


def test_a_server_that_has_a_version_loaded_is_waited_for(tmp_path: Path, database: str) -> None:
    registry, told = Registry.open(tmp_path / "home"), list[str]()
    fill(registry, tmp_path, "ours")
    version = registry.find("of-ours@1")
    registry.lease("server-1", version)
    with pytest.raises(InUse, match=r"server-1 has of-ours@1"):
        eraser(registry).delete("ours", told.append, patience_s=0.05)
    registry.store.verify(version.manifest)
    Timer(0.2, lambda: registry.renew("server-1", [])).start()
    eraser(registry).delete("ours", told.append, patience_s=20)
    assert traces(registry) == []
    assert "1 of 1 versions are still in use: server-1 has of-ours@1" in told


def test_what_comes_late_goes_with_the_next_look_of_a_server(tmp_path: Path, database: str) -> None:
    registry = Registry.open(tmp_path / "home")
    for project in ("theirs", "ours"):
        fill(registry, tmp_path, project)
    before = others(registry)
    eraser(registry).delete("ours")
    content = tmp_path / "content"
    content.write_text(TEXT)
    files_of(registry).add(content, About("ours", "late.jsonl", "batch"))
    with pytest.raises(InvalidInput, match="is being deleted"):
        Keys(registry.database).create("ours")
    eraser(registry).finish()
    assert traces(registry) == []
    assert others(registry) == before
    eraser(registry).finish()
    _, second = entries(registry, Act.PROJECT_DELETED)
    assert (second.who, second.details) == ("deletion", {"removed": {"files": 1}})

    _, secret = Keys(registry.database).create("ours")  # and it may begin again
    assert Authenticator([], Keys(registry.database)).caller(f"Bearer {secret}").project == "ours"
    fill(registry, tmp_path, "ours")
    eraser(registry).finish()
    assert all_holdings(registry.database)["ours"].has == before


def test_what_comes_while_it_is_deleted_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "ours")
    end = Deletion._end

    def late(self: Deletion, name: str, gone: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(Deletion, "_end", end)
            if len(entries(registry, Act.FILE_DELETED)) == 0 and not came:
                came.append(1)
                content = tmp_path / "content"
                content.write_text(TEXT)
                files_of(registry).add(content, About("ours", "late.jsonl", "batch"))
            return end(self, name, gone)

    came: list[int] = []
    monkeypatch.setattr(Deletion, "_end", late)
    assert eraser(registry).delete("ours")["files"] == 2
    assert traces(registry) == []


def test_the_default_project_is_open_again_once_it_is_empty(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "default")
    eraser(registry).delete("default")
    held = all_holdings(registry.database)["default"]
    assert (held.is_empty, held.deleting) == (True, None)


def test_a_store_that_is_away_leaves_the_rest_for_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "ours")

    def away(*_: object, **__: object) -> None:
        raise StoreFailed("away")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "remove", away)
        with pytest.raises(StoreFailed):
            eraser(registry).delete("ours")
    assert all_holdings(registry.database)["ours"].has["files"] == 1
    eraser(registry).delete("ours")
    assert traces(registry) == []


def test_every_table_that_names_a_project_is_emptied_of_it_or_is_known_to_stay() -> None:
    named = {table.name for table in Table.metadata.sorted_tables if "project" in table.c}
    assert set(deletion.STAYS) == {"projects", "api_keys", "audit"}
    assert named - set(deletion.STAYS) >= {"files", "jobs", "batches", "usage", "adapters"}


class TestTheCommand:
    def run(self, home: Path, *arguments: str, given: str | None = None) -> Any:
        return CliRunner().invoke(app, ["projects", *arguments, "--home", str(home)], input=given)

    def test_it_asks_before_it_deletes(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        fill(Registry.open(home), tmp_path, "ours")
        refused = self.run(home, "delete", "ours", given="n\n")
        assert refused.exit_code == 1
        assert "1 files, 1 uploads, 1 batches, 1 jobs, 1 adapters, 1 usage, 1 keys" in (
            refused.stderr
        )
        (held,) = json.loads(self.run(home, "list", "--json").stdout)
        assert (held["state"], held["keys"], held["files"]) == ("open", 1, 1)
        done = self.run(home, "delete", "ours", given="y\n")
        assert (done.exit_code, "is deleted" in done.stdout) == (0, True)
        assert "removed 1 jobs" in done.stderr
        (held,) = json.loads(self.run(home, "list", "--json").stdout)
        assert (held["state"], held["keys"], held["files"]) == ("deleted", 0, 0)
        assert "deleted" in self.run(home, "list").stdout

    def test_a_script_says_yes_and_gets_json(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        fill(Registry.open(home), tmp_path, "ours")
        done = json.loads(self.run(home, "delete", "ours", "--yes", "--json").stdout)
        assert (done["project"], done["removed"]["files"]) == ("ours", 1)
        again = self.run(home, "delete", "ours", "--yes", "--json")
        assert json.loads(again.stdout)["removed"] == {}

    def test_an_unknown_project_is_refused(self, tmp_path: Path) -> None:
        assert "no projects" in self.run(tmp_path, "list").stdout
        for name in ("nobody", "../x"):
            done = self.run(tmp_path, "delete", name, "--yes")
            assert isinstance(done.exception, InvalidInput | SystemExit)
            assert done.exit_code != 0
