"""A store elsewhere: published on one home, loaded on another; breaks, damage, bounds."""

import errno
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from adapters import remote
from adapters.digests import digest_file
from adapters.errors import AdapterError, DigestMismatch, InvalidManifest, StoreFailed
from adapters.registry import Version
from adapters.remote import Remote
from adapters.transfer import export
from tests.adapters.parcels import draft, parcel
from tests.adapters.remotes import (
    BUCKET,
    Proxy,
    is_whole,
    key_of,
    publish,
    s3_client,
    shared,
)

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def s3_url(s3: str, tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


def altered(there: Remote, version: Version, folder: Path, file: str = WEIGHTS) -> None:
    """Change the last byte of a remote file."""
    key = key_of(version, file)
    (folder / "altered").write_bytes(there.read(key)[:-1] + b"\x01")
    there.upload(folder / "altered", key)


def test_what_one_home_publishes_another_loads(url: str, tmp_path: Path) -> None:
    here, there = shared(tmp_path, url, "here", "there")
    version = publish(here, tmp_path)

    got = there.find("x@1")
    assert (got.digest, got.manifest) == (version.digest, version.manifest)
    assert not (got.folder / WEIGHTS).exists()  # nobody needed it
    there.fetch(got)

    assert got.folder.is_relative_to(tmp_path / "there")
    assert is_whole(got)
    assert sorted(path.name for path in got.folder.iterdir()) == sorted(
        [*version.manifest.files, "manifest.json"]
    )


def test_a_fetched_version_needs_the_store_no_more(s3_url: str, proxy: Proxy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    here, there = shared(tmp_path, s3_url, "here", "there")
    publish(here, tmp_path)
    there.verified("x@1")
    proxy.away = True
    proxy.requests.clear()

    assert is_whole(there.verified("x@1"))
    assert is_whole(here.verified("x@1"))
    assert proxy.requests == []


def test_an_export_fetches_what_it_needs(url: str, tmp_path: Path) -> None:
    here, there = shared(tmp_path, url, "here", "there")
    version = publish(here, tmp_path)
    export(there, "x@1", tmp_path / "out")

    assert digest_file(tmp_path / "out" / WEIGHTS) == version.manifest.files[WEIGHTS]


class TestBreaks:
    def test_the_next_try_asks_only_for_the_rest(
        self, s3_url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PIECE_BYTES", 100)
        here, _ = shared(tmp_path, s3_url, "here", "other")
        version = publish(here, tmp_path)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        _, there = shared(tmp_path, s3_url, "here", "there")
        there.store.remote.waits_s = ()
        proxy.cut_after, proxy.away_after_cut = 1500, True

        got = there.find("x@1")
        with pytest.raises(StoreFailed, match="what came is kept"):
            there.fetch(got)
        [partial] = got.folder.glob("*.partial")
        kept, place = partial.stat().st_size, partial.name.removesuffix(".partial")
        assert kept > 0
        assert not (got.folder / place).exists()
        proxy.requests.clear()
        proxy.away = False
        there.fetch(got)

        assert is_whole(got)
        assert min(proxy.ranges(place))[0] == kept
        assert not list(got.folder.glob("*.partial"))
        assert version.digest == got.digest

    def test_a_store_that_goes_and_comes_back_costs_a_try(
        self, s3_url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(shared(tmp_path, s3_url, "here")[0], tmp_path)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        [there] = shared(tmp_path, s3_url, "there")
        there.store.remote.waits_s = (0.01,)
        got = there.find("x@1")
        proxy.away = True
        with pytest.raises(StoreFailed) as caught:
            there.fetch(got)
        assert caught.value.retryable
        assert got.state == there.find("x@1").state == "ready"
        proxy.away = False
        there.fetch(got)

        assert is_whole(got)

    def test_a_failed_upload_publishes_nothing(
        self, s3_url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        [here] = shared(tmp_path, s3_url, "here")
        here.store.remote.waits_s = ()
        proxy.away = True
        with pytest.raises(StoreFailed):
            publish(here, tmp_path)

        assert here.adapters() == []
        assert [path for path in here.store.root.rglob("*") if path.is_file()] == []
        proxy.away = False
        assert publish(here, tmp_path).number == 1

    def test_a_full_disk_leaves_nothing_half_in_place(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        publish(here, tmp_path)
        got = there.find("x@1")

        def full(self: Remote, key: str, place: Path) -> None:
            place.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Remote, "download", full)
            with pytest.raises(StoreFailed, match="No space left"):
                there.fetch(got)
        assert [path.name for path in got.folder.iterdir()] == ["manifest.json"]
        there.fetch(got)
        assert is_whole(got)

    def test_a_rest_that_does_not_fit_is_fetched_anew(self, url: str, tmp_path: Path) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        publish(here, tmp_path)
        got = there.find("x@1")
        (got.folder / f"{WEIGHTS}.partial").write_bytes(b"of something else")
        there.fetch(got)

        assert is_whole(got)


class TestDamage:
    def test_a_file_altered_in_the_cache_is_repaired(
        self, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        [here] = shared(tmp_path, url, "here")
        version = publish(here, tmp_path)
        (version.folder / WEIGHTS).write_bytes(b"damaged")
        (version.folder / "probe.json").unlink()
        (version.folder / "manifest.json").write_text("{")
        with caplog.at_level(logging.WARNING):
            here.fetch(here.find("x@1"))

        assert is_whole(version)
        assert "was damaged in the cache" in caplog.text
        assert here.find("x@1").manifest == version.manifest

    def test_a_file_altered_in_the_store_is_refused_and_publication_repairs_it(
        self, url: str, tmp_path: Path
    ) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        version = publish(here, tmp_path)
        altered(here.store.remote, version, tmp_path)
        got = there.find("x@1")
        with pytest.raises(DigestMismatch, match=f"{WEIGHTS} was altered in"):
            there.fetch(got)
        assert not [path for path in got.folder.iterdir() if path.name.startswith(WEIGHTS)]
        assert is_whole(here.verified("x@1"))  # what was fetched before is sound

        there.quarantine(got, "altered")
        assert publish(here, tmp_path).state == "ready"
        assert is_whole(there.verified("x@1"))

    def test_a_remote_manifest_that_was_altered_is_refused(self, url: str, tmp_path: Path) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        version = publish(here, tmp_path)
        text = (version.folder / "manifest.json").read_text()
        (tmp_path / "m").write_text(text.replace('"x"', '"y"'))
        here.store.remote.upload(tmp_path / "m", key_of(version, "manifest.json"))
        with pytest.raises(DigestMismatch, match="holds y"):
            there.find("x@1")

    def test_a_remote_manifest_cannot_name_a_file_outside(self, url: str, tmp_path: Path) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        version = publish(here, tmp_path)
        files = {**version.manifest.files, "../../../evil": version.manifest.files[WEIGHTS]}
        (tmp_path / "m").write_text(
            version.manifest.model_copy(update={"files": files}).model_dump_json()
        )
        here.store.remote.upload(tmp_path / "m", key_of(version, "manifest.json"))
        with pytest.raises(InvalidManifest, match="doesn't have"):
            there.find("x@1")

    def test_other_reports_beside_the_same_weights_are_no_damage(
        self, url: str, tmp_path: Path
    ) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        made = parcel(tmp_path / "one", 1)
        (made / "report.json").write_text('{"old": 1}')
        here.publish(made, draft(made))
        there.find("x@1")  # keeps the manifest of now
        here.collect(keep=0, older_than_days=0)
        (made / "report.json").write_text('{"new": 2}')
        here.publish(made, draft(made))

        got = there.verified("x@1")
        assert (got.folder / "report.json").read_text() == '{"new": 2}'

    def test_a_version_that_the_store_lost_is_no_mismatch(self, url: str, tmp_path: Path) -> None:
        here, there = shared(tmp_path, url, "here", "there")
        version = publish(here, tmp_path)
        here.store.remote.remove([key_of(version, WEIGHTS)])
        with pytest.raises(StoreFailed, match=f"has no x/.*{WEIGHTS}"):
            there.fetch(there.find("x@1"))


def _fetch_in_child(folder: Path, url: str, go: float) -> None:
    [there] = shared(folder, url, "there")
    version = there.find("x@1")
    time.sleep(max(0.0, go - time.time()))
    there.fetch(version)
    if not is_whole(version):
        os._exit(3)


def test_processes_and_threads_that_want_the_same_version_download_it_once(
    s3_url: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(shared(tmp_path, s3_url, "here")[0], tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    context = get_context("spawn")
    arguments = (tmp_path, s3_url, time.time() + 8)
    children = [context.Process(target=_fetch_in_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    [there] = shared(tmp_path, s3_url, "there")
    version = there.find("x@1")
    time.sleep(max(0.0, arguments[2] - time.time()))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(there.fetch, [version] * 4))
    for child in children:
        child.join(60)

    assert [child.exitcode for child in children] == [0, 0]
    assert [len(proxy.ranges(file)) for file in version.manifest.files] == [1, 1, 1]


def test_a_bucket_without_permission_is_told_with_the_remedy(
    s3_url: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(shared(tmp_path, s3_url, "here")[0], tmp_path)
    [there] = shared(tmp_path, s3_url, "there")
    policy = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", '
        f'"Action": "s3:GetObject", "Resource": "arn:aws:s3:::{BUCKET}/{tmp_path.name}/*"}}]}}'
    )
    client = s3_client(s3)
    client.put_bucket_policy(Bucket=BUCKET, Policy=policy)
    try:
        with pytest.raises(AdapterError, match="list, read, write and delete") as caught:
            there.find("x@1")
    finally:
        client.delete_bucket_policy(Bucket=BUCKET)
    assert isinstance(caught.value, StoreFailed)


def test_what_is_being_read_can_be_verified_beside(url: str, tmp_path: Path) -> None:
    [here] = shared(tmp_path, url, "here")
    version = publish(here, tmp_path)
    with here.store.held(version.manifest), ThreadPoolExecutor(1) as thread:
        thread.submit(here.fetch, version).result(10)
