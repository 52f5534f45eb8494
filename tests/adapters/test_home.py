"""What a home folder says of its store."""

import shutil
from pathlib import Path

import pytest

from adapters import cached
from adapters.errors import InvalidInput
from adapters.home import Home
from adapters.registry import Registry
from tests.adapters.parcels import registry_with
from tests.adapters.remotes import is_whole


class TestHome:
    def test_the_environment_goes_before_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = Home(tmp_path)
        assert home.store_url is None
        (tmp_path / "modiste.yaml").write_text("store_url: s3://file\nstore_cache_gib: 2\n")
        assert (home.store_url, home.store_cache_bytes) == ("s3://file", 2 * 2**30)
        monkeypatch.setenv("MODISTE_STORE_URL", "s3://environment")
        monkeypatch.setenv("MODISTE_STORE_CACHE_GIB", "0.5")
        assert (home.store_url, home.store_cache_bytes) == ("s3://environment", 2**29)

    @pytest.mark.parametrize("value", ["0", "-1", "much", "nan", "inf"])
    def test_a_wrong_bound_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        monkeypatch.setenv("MODISTE_STORE_CACHE_GIB", value)
        with pytest.raises(InvalidInput, match="above 0"):
            _ = Home(tmp_path).store_cache_bytes

    def test_a_file_that_is_no_yaml_is_told_without_its_lines(self, tmp_path: Path) -> None:
        (tmp_path / "modiste.yaml").write_text("api_keys: [verysecret\n  ]: ]\n")
        with pytest.raises(InvalidInput, match="line 2: not valid YAML") as caught:
            _ = Home(tmp_path).store_url
        assert "verysecret" not in str(caught.value)

    def test_a_registry_opens_the_store_of_its_home(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MODISTE_STORE_URL", f"{url}/")
        registry = registry_with(tmp_path, 1)
        shutil.rmtree(registry.store.root)

        assert is_whole(Registry.open(registry.home.root).verified("x@1"))

    @pytest.mark.parametrize("below", ["", "/x"])
    def test_the_cache_is_no_store(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
    ) -> None:
        monkeypatch.setenv("MODISTE_STORE_URL", f"file://{tmp_path}/store{below}")
        with pytest.raises(InvalidInput, match="place of its cache"):
            cached.open_store(Home(tmp_path))
