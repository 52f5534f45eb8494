"""Collection in a store elsewhere: what goes, what other hosts may be writing, and kills."""

import random
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from adapters import remote_garbage
from adapters.errors import StoreFailed
from adapters.registry import Registry
from adapters.remote import Remote
from adapters.remote_garbage import REMOTE_AGE_S
from adapters.store import Staged
from tests.adapters.parcels import draft, parcel
from tests.adapters.remotes import BUCKET, Proxy, shared


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    (tmp_path / "mount").mkdir()
    s3_url = f"s3://{BUCKET}/{tmp_path.name}"
    return s3_url if request.param == "s3" else f"file://{tmp_path}/mount"


@pytest.fixture
def homes(url: str, tmp_path: Path) -> list[Registry]:
    """Two homes on one store; `x` has three versions."""
    homes = shared(tmp_path, url, "here", "there")
    for value in (1, 2, 3):
        made = parcel(tmp_path / str(value), value)
        homes[0].publish(made, draft(made))
    return homes


def there(registry: Registry) -> Remote:
    assert registry.store.remote is not None
    return registry.store.remote


def kept(registry: Registry) -> dict[int, set[str]]:
    """Names of remote files by the version's number."""
    files = [key.split("/") for key in there(registry).files()]
    return {
        version.number: {parts[2] for parts in files if version.digest.endswith(parts[1])}
        for version in registry.versions("x")
    }


def put(registry: Registry, folder: Path, key: str) -> None:
    (folder / "file").write_bytes(b"12345")
    there(registry).upload(folder / "file", key)


def old(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Make remote files whose key has one of these parts as old as an abandoned upload."""
    age_s = Remote.age_s

    def aged(self: Remote, key: str) -> float:
        found = age_s(self, key)
        return found + REMOTE_AGE_S + 60 if any(part in key for part in parts) else found

    monkeypatch.setattr(Remote, "age_s", aged)


def test_remote_files_of_old_versions_go_and_their_manifests_stay(homes: list[Registry]) -> None:
    here, other = homes
    whole = {*here.find("x@3").manifest.files, "manifest.json"}
    before = sum(there(here).files().values())
    would = here.collect(keep=1, older_than_days=0, dry_run=True)
    assert kept(here) == {1: whole, 2: whole, 3: whole}
    local = sum(v.manifest.size for v in here.versions("x")[:2])
    collected = here.collect(keep=1, older_than_days=0)

    assert collected == would
    assert collected.versions == ["x@2", "x@1"]
    assert collected.size == local + before - sum(there(here).files().values())
    assert kept(here) == {1: {"manifest.json"}, 2: {"manifest.json"}, 3: whole}
    assert [v.state for v in other.versions("x")] == ["removed", "removed", "ready"]
    assert other.verified("x@3").number == 3


def test_uploads_of_other_hosts_stay_until_they_are_a_day_old(
    homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = homes[0]
    young, dead = f"y/{'1' * 64}", f"y/{'2' * 64}"
    for key in (f"{young}/probe.json", f"{dead}/probe.json", f"{dead}/report.json",
                ".staging/old-one", ".staging/new-one"):  # fmt: skip
        put(here, tmp_path, key)
    old(monkeypatch, dead, "old-one")

    would = here.collect(dry_run=True)
    collected = here.collect()
    remote = there(here)
    assert collected == would
    assert collected.leftovers == [f"{remote.url}/{dead}", f"{remote.url}/.staging/old-one"]
    assert collected.size == 15
    left = remote.files()
    assert {f"{young}/probe.json", ".staging/new-one"} <= left.keys()
    assert not [key for key in left if key.startswith(dead) or "old-one" in key]
    assert set(kept(here)) == {1, 2, 3}


def test_one_young_file_spares_the_folder_of_an_upload(
    homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("adapter_model.safetensors", "probe.json"):
        put(homes[0], tmp_path, f"y/{'1' * 64}/{name}")
    old(monkeypatch, "adapter_model")

    assert homes[0].collect().leftovers == []


def test_whole_folders_that_this_database_does_not_know_stay(
    homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Registry.open(tmp_path / "another database")
    old(monkeypatch, "")
    before = there(homes[0]).files()
    found, size = stranger._collect_remote(there(homes[0]), set(), dry_run=False)

    assert (found, size) == ([], 0)
    assert there(homes[0]).files() == before


def test_what_is_not_a_stores_is_never_touched(
    homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = [
        "README",
        "x/notes.txt",
        f"x/{'1' * 64}/deep/file",
        f"X/{'1' * 64}/file",
        "x/12/file",
    ]
    for key in strange:
        put(homes[0], tmp_path, key)
    old(monkeypatch, "")

    assert homes[0].collect().leftovers == []
    assert set(strange) <= there(homes[0]).files().keys()


@pytest.mark.parametrize("dies", ["before", "between"])
def test_a_killed_collection_is_finished_by_the_next_one_on_any_host(
    homes: list[Registry], monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    here, other = homes
    remove, removed = Remote.remove, []

    def crash(self: Remote, keys: list[str], **more: bool) -> None:
        if dies == "between":
            remove(self, keys[:1], **more)
        removed.append(keys)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            here.collect(keep=1, older_than_days=0)
    assert len(removed) == 1
    assert here.find("x@1").state == "removed"
    assert sum(len(files) > 1 for files in kept(here).values()) == 3
    other.collect()

    assert [len(files) > 1 for files in kept(here).values()] == [False, False, True]


def test_a_store_that_is_away_is_told_and_the_next_call_goes_on(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    [here] = shared(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", "here")
    here.store.remote.waits_s = ()
    made = parcel(tmp_path / "one")
    here.publish(made, draft(made))
    proxy.away = True
    with pytest.raises(StoreFailed):
        here.collect(keep=0, older_than_days=0)
    proxy.away = False
    here.collect()

    assert kept(here) == {1: {"manifest.json"}}


class TestBesideAPublication:
    def test_published_again_before_its_files_go_they_stay(
        self, homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, other = homes
        states = remote_garbage.RemoteGarbage._states

        def late(self: Registry) -> dict[tuple[str, str], str]:
            found = states(self)
            other.publish(tmp_path / "1", draft(tmp_path / "1"))
            return found

        monkeypatch.setattr(remote_garbage.RemoteGarbage, "_states", late)
        here.collect(keep=1, older_than_days=0)

        assert here.find("x@1").state == "ready"
        assert kept(here)[1] > {"manifest.json"}
        assert len(kept(here)[2]) == 1

    def test_files_that_went_while_it_was_published_are_noticed(
        self, homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, other = homes
        upload = Staged.upload
        here.collect(keep=1, older_than_days=0)

        def collected_meanwhile(self: Staged) -> None:
            upload(self)
            other.collect(keep=1, older_than_days=0)

        with monkeypatch.context() as patch:
            patch.setattr(Staged, "upload", collected_meanwhile)
            with pytest.raises(StoreFailed, match="went from the store while it was published"):
                here.publish(tmp_path / "1", draft(tmp_path / "1"))
        assert here.find("x@1").state == "removed"

        assert here.publish(tmp_path / "1", draft(tmp_path / "1")).reference == "x@1"
        assert other.verified("x@1").state == "ready"


def _work(folder: Path, url: str, seed: int, begun: object) -> None:
    [here] = shared(folder, url, "here")
    dice = random.Random(seed)
    for turn in range(1000):
        made = folder / str(dice.randint(1, 3))
        here.publish(made, draft(made, dice.choice(("x", "y"))))
        if turn == 0:
            begun.send("ready")  # type: ignore[attr-defined]
        here.collect(keep=dice.randint(0, 2), older_than_days=0)


def test_killed_at_any_point_what_is_offered_can_be_had_elsewhere(
    url: str, homes: list[Registry], tmp_path: Path
) -> None:
    other, context, dice = homes[1], get_context("fork"), random.Random(3)
    checked = 0
    for kill in range(12):
        here, far = context.Pipe()
        process = context.Process(target=_work, args=(tmp_path, url, kill, far))
        process.start()
        assert here.recv() == "ready"
        time.sleep(dice.uniform(0, 0.6))
        process.kill()
        process.join()
        for record in other.adapters():
            for version in other.versions(record.name):
                if version.state == "ready":
                    other.verified(version.reference)
                    checked += 1
    assert checked  # it did work between the kills
