"""The cache of a store elsewhere: what makes room, and what stays."""

import time
from pathlib import Path

import pytest

from adapters import fetches
from adapters.registry import Registry
from tests.adapters.remotes import is_whole, key_of, publish, shared

WEIGHTS = "adapter_model.safetensors"


class TestRoom:
    @pytest.fixture(autouse=True)
    def _used_long_ago(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetches, "RECENT_S", -1.0)

    @pytest.fixture
    def homes(self, url: str, tmp_path: Path) -> list[Registry]:
        """Three versions published on the first home, all fetched by the second."""
        here, there = shared(tmp_path, url, "here", "there")
        for value in (1, 2, 3):
            publish(here, tmp_path, value)
        for reference in ("x@2", "x@1", "x@3"):
            there.verified(reference)
            time.sleep(0.02)
        return [here, there]

    def have(self, registry: Registry) -> list[int]:
        return [v.number for v in registry.versions("x") if (v.folder / WEIGHTS).exists()]

    def limit(self, monkeypatch: pytest.MonkeyPatch, registry: Registry, versions: float) -> None:
        size = registry.find("x@1").manifest.size
        monkeypatch.setenv("MODISTE_STORE_CACHE_GIB", repr(versions * size / 2**30))

    def test_the_least_recently_used_go_first(
        self, homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = homes
        publish(here, tmp_path, 4)
        self.limit(monkeypatch, there, 2.5)
        there.verified("x@4")

        assert self.have(there) == [3, 4]
        assert is_whole(there.verified("x@2"))
        assert self.have(there) == [2, 4]
        assert [v.number for v in there.versions("x")] == [1, 2, 3, 4]  # manifests stay

    def test_what_a_server_leases_or_somebody_reads_stays(
        self, homes: list[Registry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = homes
        here.lease("a server", there.find("x@2"))
        self.limit(monkeypatch, there, 0.5)
        with there.store.held(there.find("x@1").manifest):
            there.make_room(0)
            assert self.have(there) == [1, 2]

    def test_what_was_asked_for_just_now_stays(
        self, homes: list[Registry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fetches, "RECENT_S", 60.0)
        self.limit(monkeypatch, homes[1], 0.5)
        homes[1].make_room(0)

        assert self.have(homes[1]) == [1, 2, 3]

    def test_the_only_copy_stays(
        self, homes: list[Registry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, there = homes
        there.store.remote.remove([key_of(there.find("x@2"), WEIGHTS)])
        self.limit(monkeypatch, there, 0.5)
        there.make_room(0)

        assert self.have(there) == [2]

    def test_removed_versions_go_though_the_store_has_them_no_more(
        self, homes: list[Registry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = homes
        here.collect(keep=1, older_than_days=0)
        self.limit(monkeypatch, there, 1.5)
        there.make_room(0)

        assert self.have(there) == [3]

    def test_a_publication_counts_too(
        self, homes: list[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, _ = homes
        self.limit(monkeypatch, here, 1.5)
        publish(here, tmp_path, 4)

        assert self.have(here) == [4]
