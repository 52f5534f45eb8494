"""Collection: what goes, what never goes, and what a crash in between leaves."""

import fcntl
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import garbage
from adapters.errors import InvalidInput, Removed, StoreFailed
from adapters.registry import Registry
from tests.adapters.parcels import draft, execute, parcel, registry_with


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with five versions."""
    return registry_with(tmp_path, 5)


def all_but(registry: Registry, keep: int = 0) -> list[str]:
    return registry.collect(keep=keep, older_than_days=0).versions


def files(registry: Registry, reference: str) -> set[str]:
    return {path.name for path in registry.find(reference).folder.iterdir()}


def age(path: Path) -> Path:
    before = time.time() - garbage.STAGING_AGE_S - 1
    os.utime(path, (before, before))
    return path


def test_old_versions_go_and_the_newest_stay(registry: Registry) -> None:
    collected = registry.collect(keep=2, older_than_days=0)

    assert collected.versions == ["x@3", "x@2", "x@1"]
    assert collected.size > 0
    assert files(registry, "x@1") == {"manifest.json"}
    assert [v.state for v in registry.versions("x")] == ["removed"] * 3 + ["ready"] * 2
    for version in registry.versions("x")[3:]:
        registry.store.verify(version.manifest)


def test_checkpoints_stay_and_go_with_the_result_of_their_run(registry: Registry) -> None:
    work = registry.home.root / "made"
    for number, step in ((6, 10), (7, 20), (8, None), (9, 10), (10, 20)):
        folder = parcel(work / str(number), number)
        registry.publish(folder, draft(folder, checkpoint=step))

    kept = registry.collect(keep=1, older_than_days=0)

    assert kept.versions == ["x@5", "x@4", "x@3", "x@2", "x@1"]
    assert all_but(registry, 1) == []  # of a run at work, whose result is still to come
    assert all_but(registry, 0) == [f"x@{number}" for number in (10, 9, 8, 7, 6)]


def test_by_default_a_young_version_stays(registry: Registry) -> None:
    assert registry.collect(keep=0).versions == []

    execute(registry, "UPDATE versions SET created = '2020-01-01 00:00:00' WHERE number = 2")
    assert registry.collect(keep=0).versions == ["x@2"]


def test_what_an_alias_needs_stays_its_way_back_too(registry: Registry) -> None:
    for reference in ("x@1", "x@2", "x@3"):
        registry.promote(reference)
    registry.promote("x@4", "staging")

    assert all_but(registry) == ["x@5", "x@1"]
    assert registry.rollback("x").number == 2


def test_what_a_server_holds_stays_until_its_lease_runs_out(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = registry.versions("x")
    registry.lease("here", versions[0])
    registry.lease("there", versions[1])
    registry.renew("there", [versions[2]])

    assert all_but(registry) == ["x@5", "x@4", "x@2"]

    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert all_but(registry) == ["x@3", "x@1"]


def test_a_lease_that_comes_too_late_is_refused(registry: Registry) -> None:
    version = registry.find("x@1")
    all_but(registry, keep=1)

    with pytest.raises(Removed, match="publish or import"):
        registry.lease("here", version)


def test_a_removed_version_is_told_as_such_and_not_promoted(registry: Registry) -> None:
    all_but(registry, keep=1)

    with pytest.raises(Removed, match="collected on"):
        registry.promote("x@1")


def test_equal_content_brings_a_removed_version_back_under_its_number(
    registry: Registry, tmp_path: Path
) -> None:
    digest = registry.find("x@2").digest
    all_but(registry, keep=1)

    version = registry.publish(tmp_path / "2", draft(tmp_path / "2"))

    assert (version.reference, version.digest, version.state) == ("x@2", digest, "ready")
    registry.store.verify(version.manifest)


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_crash_while_a_version_comes_back_leaves_all_listed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    digest = registry.find("x@2").digest
    all_but(registry, keep=1)
    replace, left = Path.replace, [moves]

    def killed(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.publish(tmp_path / "2", draft(tmp_path / "2"))

    states = {version.number: version.state for version in registry.versions("x")}
    assert states[2] == "removed"
    version = registry.publish(tmp_path / "2", draft(tmp_path / "2"))
    assert (version.reference, version.digest, version.state) == ("x@2", digest, "ready")
    registry.store.verify(version.manifest)


def test_numbers_are_never_used_again(registry: Registry, tmp_path: Path) -> None:
    all_but(registry)

    folder = parcel(tmp_path / "6", 6)
    assert registry.publish(folder, draft(folder)).number == 6


def test_a_dry_run_tells_the_same_and_removes_nothing(registry: Registry) -> None:
    age(Path(shutil.copytree(registry.find("x@1").folder, registry.store.staging / "dead")))
    would = registry.collect(keep=1, older_than_days=0, dry_run=True)

    assert [v.state for v in registry.versions("x")] == ["ready"] * 5
    assert registry.collect(keep=1, older_than_days=0) == would


def test_leftovers_of_killed_publications_go(registry: Registry, tmp_path: Path) -> None:
    staging, store = registry.store.staging, registry.store.root
    dead, young, living = staging / "dead", staging / "young", staging / "living"
    for folder in (dead, young, living):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"12345")
    age(dead)
    age(living)
    orphan = store / "x" / ("0" * 64)
    orphan.mkdir()
    held = os.open(living, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    collected = registry.collect()

    assert collected.leftovers == [f"x/{'0' * 64}", ".staging/dead"]
    assert sorted(staging.iterdir()) == [living, young]
    assert not orphan.exists()
    os.close(held)
    assert registry.collect().leftovers == [".staging/living"]


def test_a_publication_at_work_is_left_alone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "STAGING_AGE_S", -1)
    folder = parcel(tmp_path / "6", 6)
    with registry.store.staged(folder, draft(folder)) as staged:
        assert registry.collect().leftovers == []
        assert staged.folder.exists()


def test_a_crash_after_the_first_step_is_finished_by_the_next_collection(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_set_aside", crash)
        with pytest.raises(KeyboardInterrupt):
            all_but(registry, keep=1)
    assert registry.find("x@1").state == "removed"
    assert len(files(registry, "x@1")) > 1

    registry.collect()

    assert files(registry, "x@1") == {"manifest.json"}


def test_a_store_that_cannot_be_written_is_told(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Registry, "_set_aside", refuse)

    with pytest.raises(StoreFailed, match="Permission denied"):
        all_but(registry)


@pytest.mark.parametrize("key", ["keep", "older_than_days"])
def test_negative_limits_are_refused(registry: Registry, key: str) -> None:
    with pytest.raises(InvalidInput, match=f"{key} is -1"):
        registry.collect(**{key: -1})


def test_collections_at_once_follow_one_another(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, 12)
    registry.promote("x@12")

    def collect(_: int) -> list[str]:
        return Registry.open(registry.home.root).collect(keep=1, older_than_days=0).versions

    with ThreadPoolExecutor(6) as threads:
        collected = list(threads.map(collect, range(6)))

    once = sorted(reference for some in collected for reference in some)
    assert once == sorted(f"x@{number}" for number in range(1, 12))
    assert registry.verified("x@12").number == 12
    assert list(registry.store.staging.iterdir()) == []


def test_a_projects_collection_touches_and_tells_its_own_alone(
    registry: Registry, tmp_path: Path
) -> None:
    folder = parcel(tmp_path / "theirs", 1)
    registry.publish(folder, draft(folder, "y", project="theirs"))
    orphan = registry.store.root / "z" / ("0" * 64)
    orphan.mkdir(parents=True)
    mine = registry.collect(keep=0, older_than_days=0, project="theirs")
    assert (mine.versions, mine.leftovers) == (["y@1"], [])
    assert {v.state for v in registry.versions("x")} == {"ready"}
    assert registry.collect(keep=0, older_than_days=0).versions[-1] == "x@1"
