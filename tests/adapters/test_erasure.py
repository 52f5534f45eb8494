"""Erasure: all of a project's adapters go, and nothing of anybody else's."""

import time
from pathlib import Path

import pytest
from sqlalchemy import select

from adapters.database import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    CanaryCountRow,
    CanaryRow,
    LeaseRow,
    ScoreRow,
    VersionRow,
)
from adapters.errors import AdapterNotFound
from adapters.fetches import UNKNOWN_S
from adapters.names import Reference
from adapters.registry import Registry
from adapters.rules import Side
from tests.adapters.parcels import draft, parcel
from tests.adapters.remotes import shared

TABLES = (
    AdapterRow, VersionRow, AliasRow, AliasMoveRow, CanaryRow, CanaryCountRow, ScoreRow, LeaseRow,
)  # fmt: skip


def fill(registry: Registry, folder: Path, name: str, project: str) -> None:
    """An adapter with two versions, an alias, a canary, its counts, a score and an old lease."""
    for value in (1, 2):
        made = folder / f"made-{value}"
        made = made if made.exists() else parcel(made, value)
        registry.publish(made, draft(made, name, project=project))
    registry.promote(f"{name}@1")
    registry.start_canary(f"{name}@2", 10)
    started = registry.canaries()[name, "production"].started
    registry.count("here", (name, "production"), started, {1: Side(answers=1)})
    registry.score(name, 1, 0.5, request_id="r")
    with registry.database.write() as session:
        session.add(LeaseRow(server="dead", adapter=name, number=1, until=time.time() - 1))


def adapters_in(registry: Registry) -> dict[str, set[str]]:
    """Names of adapters by table."""
    with registry.database.read() as session:
        columns = {
            table.__tablename__: table.name if table is AdapterRow else table.adapter
            for table in TABLES
        }
        return {
            name: set(session.scalars(select(column))) - {""} for name, column in columns.items()
        }


def files(registry: Registry) -> list[str]:
    found = (path for path in registry.home.root.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(registry.home.root)) for path in found)


def test_all_of_a_project_goes_and_nothing_of_another(tmp_path: Path, database: str) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "theirs", "theirs")
    others = [name for name in files(registry) if "theirs" in name]
    fill(registry, tmp_path, "ours", "ours")
    revision = registry.revision()

    assert registry.take_out("ours") == ["ours@1", "ours@2"]
    assert registry.revision() > revision
    assert ("ours", "production") not in registry.all_aliases()
    assert {version.state for version in registry.versions("ours")} == {"retired"}
    assert registry.erase("ours") == 0

    assert set(map(frozenset, adapters_in(registry).values())) == {frozenset({"theirs"})}
    assert [name for name in files(registry) if "ours" in name] == []
    assert [name for name in files(registry) if "theirs" in name] == others
    assert registry.verified("theirs@production").number == 1
    with pytest.raises(AdapterNotFound):
        registry.versions("ours")
    assert (registry.take_out("ours"), registry.erase("ours")) == ([], 0)


def test_the_revision_never_is_one_that_it_was_before(tmp_path: Path, database: str) -> None:
    registry, seen = Registry.open(tmp_path / "home"), list[int]()
    for _ in range(3):
        fill(registry, tmp_path, "ours", "ours")
        registry.promote("ours@2")
        seen.append(registry.revision())
        registry.take_out("ours")
        seen.append(registry.revision())
        registry.erase("ours")
        seen.append(registry.revision())
        assert registry.stamp() is not None
    assert seen == sorted(set(seen))
    with registry.database.read() as session:
        assert len(list(session.scalars(select(AliasMoveRow)))) == 1


def test_the_name_is_free_for_another_project(tmp_path: Path, database: str) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "x", "ours")
    registry.take_out("ours")
    registry.erase("ours")
    fill(registry, tmp_path, "x", "theirs")
    assert registry.project("x") == "theirs"
    assert [move.to_number for move in registry.alias_history("x")] == [1, 2]


def test_what_a_server_holds_stays_until_it_lets_go(tmp_path: Path, database: str) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "ours", "ours")
    held = registry.find("ours@2")
    registry.lease("server-1", held)
    registry.take_out("ours")

    assert registry.held("ours") == {"server-1": ["ours@2"]}
    assert registry.out_of_use([held]) == [held]
    assert registry.erase("ours") == 1
    registry.store.verify(held.manifest)
    assert registry.find("ours@2").digest == held.digest
    registry.renew("server-1", [])
    assert registry.held("ours") == {}
    assert registry.erase("ours") == 0
    assert registry.out_of_use([held]) == [held]
    assert files(registry) == [name for name in files(registry) if not name.startswith("store/o")]


def test_what_is_published_again_meanwhile_is_left_for_the_next_call(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "ours", "ours")
    registry.take_out("ours")
    made, erase = tmp_path / "made-1", type(registry.store).erase

    first = registry.find("ours@1").digest

    def meanwhile(self: object, name: str, digest: str) -> None:
        erase(registry.store, name, digest)
        if digest == first:
            Registry.open(registry.home.root).publish(made, draft(made, "ours", project="ours"))

    with monkeypatch.context() as patch:
        patch.setattr(type(registry.store), "erase", meanwhile)
        left = registry.erase("ours")
    assert left == 1
    with registry._read() as session:
        row = registry._row(session, Reference("ours", number=1))
        assert row.state == "ready"
    registry.take_out("ours")
    assert registry.erase("ours") == 0


class TestAStoreElsewhere:
    """On S3, in a mounted folder, and in memory."""

    def test_the_files_there_and_here_go_and_those_of_others_stay(
        self, tmp_path: Path, url: str
    ) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        fill(here, tmp_path, "theirs", "theirs")
        fill(here, tmp_path, "ours", "ours")
        there.fetch(there.find("ours@1"))
        assert here.store.remote is not None
        before = [key for key in here.store.remote.files() if key.startswith("theirs")]

        here.take_out("ours")
        assert here.erase("ours") == 0

        assert sorted(here.store.remote.files()) == sorted(before)
        assert [name for name in files(here) if "ours" in name] == []
        assert here.verified("theirs@1").number == 1

    def test_a_cache_elsewhere_forgets_what_is_not_known_any_more(
        self, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        fill(here, tmp_path, "ours", "ours")
        fill(here, tmp_path, "theirs", "theirs")
        for reference in ("ours@1", "theirs@1"):
            there.fetch(there.find(reference))
        here.take_out("ours")
        here.erase("ours")

        assert there.forget_unknown() == 0  # it may be about to be published
        later = time.time() + UNKNOWN_S + 1
        monkeypatch.setattr(time, "time", lambda: later)
        assert there.forget_unknown() == 1
        assert [name for name in files(there) if "ours" in name] == []
        assert there.store.missing(there.find("theirs@1").manifest) == 0


def test_a_local_store_keeps_what_an_older_database_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "home")
    fill(registry, tmp_path, "ours", "ours")
    with registry.database.write() as session:
        for table in (VersionRow, AliasRow, ScoreRow):
            session.execute(table.__table__.delete())  # type: ignore[attr-defined]
    later = time.time() + UNKNOWN_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert registry.forget_unknown() == 0
    assert [name for name in files(registry) if "ours" in name]
