"""A backup is whole and names nothing that it lacks, whatever goes on meanwhile."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.errors import InvalidInput, StoreFailed
from adapters.home import Home
from adapters.records import QUARANTINED, READY
from adapters.registry import Registry
from service.backups.about import MARK, PARTIAL
from service.backups.contents import named_files
from service.backups.making import back_up
from service.files import About
from tests.adapters.parcels import draft, parcel
from tests.service.backups.conftest import dies, filled, reopened, rows
from tests.service.filled import files_of


def quiet(_step: str) -> None:
    pass


def inside(backup: Path) -> Registry:
    """A copy of a backup as a home: opening it writes beside the database."""
    copy = backup.with_name("looked-at")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(backup, copy)
    return Registry.within(Home(copy))


def names_only_what_it_has(backup: Path) -> bool:
    registry = inside(backup)
    ready = registry.readable()[0]
    for version in ready:
        registry.verified(version.reference)
    return all(
        content.is_at(registry.home.files / content.key)
        for content in named_files(registry.database.engine)
    )


def test_a_backup_has_every_row_and_every_content(full: Registry, tmp_path: Path) -> None:
    about = back_up(full, tmp_path / "backup", tell=quiet)

    assert rows(inside(tmp_path / "backup")) == rows(full)
    assert names_only_what_it_has(tmp_path / "backup")
    assert about.counts == {"versions": 2, "aliases": 2, "jobs": 2, "files": 2, "batches": 2}
    assert (about.lost, about.bases) == ([], ["b"])
    assert (tmp_path / "backup" / "modiste.yaml").read_text() == "queue_wait_s: 7\n"
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0


def each_once(acts: dict[str, Callable[[], object]]) -> Callable[[str], None]:
    return lambda step: acts.pop(step, lambda: None)()


def test_what_is_deleted_and_made_meanwhile_is_in_it_whole_or_not_at_all(
    full: Registry, tmp_path: Path
) -> None:
    early, late = parcel(tmp_path / "early", 7.0), parcel(tmp_path / "late", 8.0)
    files, about = files_of(full), About("ours", "a.jsonl", "evals")
    file = files.add(early / "probe.json", about)
    full.publish(early, draft(early, "many", project="ours"))

    def meanwhile() -> None:
        full.collect(keep=0, older_than_days=0)
        files.delete(file.id, "ours")
        full.publish(late, draft(late, "many", project="ours"))
        files.add(late / "probe.json", about)

    back_up(full, tmp_path / "backup", tell=each_once({"the database is copied": meanwhile}))

    assert [version.state for version in full.versions("many")] == ["removed", "ready"]
    assert names_only_what_it_has(tmp_path / "backup")
    copied = inside(tmp_path / "backup")
    assert [version.state for version in copied.versions("many")] == ["removed", "ready"]
    assert rows(copied) == rows(full)


def test_what_the_home_has_lost_is_told_and_not_ready_in_the_copy(
    full: Registry, tmp_path: Path
) -> None:
    version = full.find("of-ours@1")
    (version.folder / "adapter_model.safetensors").write_bytes(b"altered")
    [file, _] = full.home.files.glob("file-*")
    file.unlink()

    about = back_up(full, tmp_path / "backup", tell=quiet)

    [lost_version, lost_file] = about.lost
    assert lost_version.startswith("of-ours@1: ")
    assert file.name in lost_file
    copied = inside(tmp_path / "backup").find("of-ours@1")
    assert copied.state == QUARANTINED
    assert "not whole when it was backed up" in copied.reason
    assert full.find("of-ours@1").state == READY


def test_a_store_that_is_away_ends_a_backup_and_quarantines_nothing(
    full: Registry, tmp_path: Path
) -> None:
    full.home.store.rename(tmp_path / "unmounted")
    with pytest.raises(StoreFailed, match="none of the 2 versions"):
        back_up(full, tmp_path / "backup", tell=quiet)
    assert not (tmp_path / "backup").exists()
    (tmp_path / "unmounted").rename(full.home.store)
    assert back_up(full, tmp_path / "backup", tell=quiet).lost == []


def test_a_backup_that_is_killed_is_none_and_is_gone_on_with(tmp_path: Path) -> None:
    full, target = filled(tmp_path), tmp_path / "backup"
    step = 1
    while dies(step, lambda tell: back_up(reopened(full), target, tell=tell)):
        partial = target.with_name(target.name + PARTIAL)
        assert not target.exists()
        assert not (partial / MARK).exists()
        step += 1
    assert step == 5  # database, versions, files, base model; then it was whole
    assert names_only_what_it_has(target)
    assert rows(inside(target)) == rows(full)


def test_what_a_killed_backup_copied_is_not_copied_again(tmp_path: Path) -> None:
    full, target = filled(tmp_path), tmp_path / "backup"
    assert dies(4, lambda tell: back_up(reopened(full), target, tell=tell))
    partial = target.with_name(target.name + PARTIAL)
    before = {
        path.relative_to(partial): path.stat().st_ino
        for path in partial.rglob("*")
        if path.name in ("adapter_model.safetensors", "model.safetensors")
    }
    back_up(full, target, tell=quiet)
    assert len(before) == 3
    assert {path: (target / path).stat().st_ino for path in before} == before


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    full = filled(tmp_path)
    back_up(full, tmp_path / "backup", tell=quiet)
    with pytest.raises(InvalidInput, match="there is something at"):
        back_up(full, tmp_path / "backup", tell=quiet)
    with pytest.raises(InvalidInput, match="lies in the home folder"):
        back_up(full, full.home.root / "backup", tell=quiet)


def test_two_backups_of_one_name_are_not_made_at_once(tmp_path: Path) -> None:
    full, target = filled(tmp_path), tmp_path / "backup"
    refused: list[str] = []

    def another(_step: str) -> None:
        with pytest.raises(InvalidInput, match="by another process") as error:
            back_up(full, target, tell=quiet)
        refused.append(error.value.message)

    back_up(full, target, tell=each_once({"versions are copied": lambda: another("")}))
    assert len(refused) == 1


def test_base_models_may_be_left_out(tmp_path: Path) -> None:
    full = filled(tmp_path)
    about = back_up(full, tmp_path / "backup", bases=False, tell=quiet)
    assert about.bases == []
    assert not (tmp_path / "backup" / "bases").exists()
