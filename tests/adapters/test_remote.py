"""Single files in a store elsewhere: URLs, errors, resumed downloads, uploads that appear whole."""

from pathlib import Path

import pytest

from adapters import remote
from adapters.errors import InvalidInput, StoreFailed
from adapters.remote import Absent, Remote, check_store_url
from tests.adapters.remotes import BUCKET, Proxy, s3_client

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["s3", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> Remote:
    (tmp_path / "mount").mkdir()
    place = {
        "s3": f"s3://{BUCKET}/{tmp_path.name}", "file": f"file://{tmp_path}/mount",
        "memory": f"memory://{tmp_path.name}",
    }  # fmt: skip
    return Remote(place[request.param])


def put(store: Remote, folder: Path, key: str, data: bytes = DATA) -> None:
    (folder / "source").write_bytes(data)
    store.upload(folder / "source", key)


def test_files_come_back_as_they_went(store: Remote, tmp_path: Path) -> None:
    put(store, tmp_path, "x/one/a.bin")
    put(store, tmp_path, "x/two/b.bin", b"b")
    store.download("x/one/a.bin", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == store.read("x/one/a.bin") == DATA
    assert store.files() == {"x/one/a.bin": len(DATA), "x/two/b.bin": 1}
    assert store.files("x/two") == {"b.bin": 1}
    assert 0 <= store.age_s("x/two/b.bin") + 1 < 60
    store.check()


def test_an_upload_replaces_what_was_there_and_removal_is_repeatable(
    store: Remote, tmp_path: Path
) -> None:
    put(store, tmp_path, "x/a", b"old and longer")
    put(store, tmp_path, "x/a", b"new")
    assert store.read("x/a") == b"new"

    store.remove(["x/a", "x/b"])
    store.remove(["x/a"])
    assert store.files() == {}


def test_a_missing_file_is_told_by_its_key(store: Remote, tmp_path: Path) -> None:
    put(store, tmp_path, "x/a")
    with pytest.raises(Absent, match="has no x/b"):
        store.read("x/b")
    with pytest.raises(Absent, match="has no x/b"):
        store.download("x/b", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("already", [0, 1, 4000, len(DATA)])
def test_a_download_goes_on_where_the_last_one_ended(
    store: Remote, tmp_path: Path, already: int
) -> None:
    put(store, tmp_path, "x/a")
    (tmp_path / "a").write_bytes(DATA[:already])
    store.download("x/a", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == DATA


def test_a_longer_rest_of_another_file_is_thrown_away(store: Remote, tmp_path: Path) -> None:
    put(store, tmp_path, "x/a")
    (tmp_path / "a").write_bytes(b"z" * (len(DATA) + 1))
    store.download("x/a", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == DATA


def test_a_break_costs_one_piece_and_no_byte_twice(
    s3: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(Remote(f"s3://{BUCKET}/{tmp_path.name}"), tmp_path, "a.bin")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(remote, "PIECE_BYTES", 1000)
    proxy.cut_after = 5000  # headers are counted, so in the fourth piece or so

    Remote(f"s3://{BUCKET}/{tmp_path.name}").download("a.bin", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == DATA
    assert proxy.cuts == 0
    asked = proxy.ranges("a.bin")
    whole = [(start, min(start + 999, len(DATA) - 1)) for start in range(0, len(DATA), 1000)]
    [again] = [piece for piece in set(asked) if asked.count(piece) == 2]
    assert whole.index(again) >= 2
    assert sorted([*whole, again]) == asked


def test_a_store_that_is_away_is_told_and_found_again(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    store = Remote(f"s3://{BUCKET}/{tmp_path.name}", waits_s=(0.01,))
    put(store, tmp_path, "a")
    proxy.away = True
    with pytest.raises(StoreFailed, match="check the network and the store"):
        store.read("a")
    proxy.away = False

    assert store.read("a") == DATA


class TestRefusals:
    @pytest.mark.parametrize(
        "url",
        [
            "s3://AKIAID:verysecret@bucket/p", "s3://AKIAID:very/secret@bucket/p",
            "s3://AKIAID@bucket", "s3://bucket/p?secret=verysecret", "s3://bucket#verysecret",
            "sftp://me:verysecret@host/p", "abfs://c:verysecret@account/p",
        ],
    )  # fmt: skip
    def test_credentials_in_the_url_are_refused_and_not_repeated(self, url: str) -> None:
        with pytest.raises(InvalidInput, match="never in the URL") as caught:
            check_store_url(url)
        assert "secret@" not in str(caught.value)
        assert "verysecret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["", "store", "/mnt/store", "nope://x", "simplecache::s3://b", "s3://", "file://x/y"]
    )
    def test_what_is_no_place_is_refused_with_an_example(self, url: str) -> None:
        with pytest.raises(InvalidInput, match="s3://BUCKET/PREFIX") as caught:
            check_store_url(url)
        assert caught.value.param == "store_url"

    @pytest.mark.parametrize("url", ["sftp://me@host/p", "abfs://container@account/p", "s3://b/"])
    def test_names_of_users_and_containers_pass(self, url: str) -> None:
        assert check_store_url(url) == url.rstrip("/")

    def test_a_protocol_without_its_package_is_told(self) -> None:
        with pytest.raises(InvalidInput, match="gs:// needs a package"):
            Remote("gs://bucket").check()

    @pytest.mark.parametrize("work", ["check", "files", "put"])
    def test_a_bucket_or_folder_that_lacks_is_told_with_the_remedy(
        self, s3: str, tmp_path: Path, work: str
    ) -> None:
        for url in ("s3://no-such-bucket/p", f"file://{tmp_path}/not-mounted"):
            store = Remote(url)
            with pytest.raises(StoreFailed, match="make the bucket or mount the folder"):
                put(store, tmp_path, "a") if work == "put" else getattr(store, work)()
        assert not (tmp_path / "not-mounted").exists()

    def test_nothing_is_made_of_a_missing_bucket(self, s3: str, tmp_path: Path) -> None:
        with pytest.raises(StoreFailed):
            put(Remote("s3://no-such-bucket"), tmp_path, "a")
        buckets = s3_client(s3).list_buckets()["Buckets"]
        assert [bucket["Name"] for bucket in buckets] == [BUCKET]

    def test_missing_credentials_are_told_by_their_variables(
        self, s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        with pytest.raises(StoreFailed, match="AWS_ACCESS_KEY_ID"):
            Remote(f"s3://{BUCKET}").check()
