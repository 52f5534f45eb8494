"""A server of our own: what it takes over, and what it says when it does not start."""

from pathlib import Path

import pytest

from adapters.bases import Base
from adapters.errors import StoreFailed
from adapters.home import Home
from finetune.own_server import ENGINE_SETTINGS, own_registry, serving
from service.settings import Settings


def test_its_registry_lies_in_its_folder_whatever_the_operators_settings_name(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "operators")
    home.root.mkdir()
    home.settings.write_text("dtype: float32\nport: 9000\nkv_cache_gib: 2\n")
    monkeypatch.setenv("MODISTE_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("MODISTE_STORE_URL", "s3://nobodys/place")

    own = own_registry(home, tmp_path / "own", base)

    assert [known.name for known in own.bases()] == [base.name]
    assert own.home.database.is_file()
    assert own.home.configured() == {"dtype": "float32", "kv_cache_gib": 2}


def test_one_that_does_not_start_says_why(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_NO_SUCH", "1")  # a mistake, if it were taken over
    monkeypatch.setenv("MODISTE_VLLM_ARGS", "--api-key x")
    own = own_registry(Home(tmp_path), tmp_path / "own", base)
    log, said = tmp_path / "log", list[str]()

    with (
        pytest.raises(StoreFailed, match="--api-key") as caught,
        serving(own, base, log, said.append),
    ):
        pass

    assert "evaluation.on_server=false" in caught.value.hint
    assert "no_such" not in log.read_text()
    assert str(log) in said[0]


def test_settings_of_the_engine_are_settings_of_the_server() -> None:
    assert set(ENGINE_SETTINGS) < set(Settings.model_fields)
