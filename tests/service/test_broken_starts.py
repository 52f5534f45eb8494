"""A start where something is broken: what can be served is, and the rest is said plainly."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from typer.testing import CliRunner, Result

import adapters.connect
from adapters.connect import for_writes, open_database
from adapters.database import SCHEMA
from adapters.database_url import sqlite_url
from adapters.registry import Registry
from bench.servers import free_port
from service import capacity, cli, launch
from service.settings import Settings
from tests.adapters.parcels import draft, parcel
from tests.made import add_tiny_base


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A base, and three live versions of two adapters."""
    registry = Registry.open(tmp_path / "home")
    add_tiny_base(registry)
    for number, name in enumerate(("x", "x", "y"), start=1):
        folder = parcel(tmp_path / f"parcel-{number}", number)
        registry.promote(registry.publish(folder, draft(folder, name)).reference)
    return registry.home.root


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Plans of starts that came as far as vLLM."""
    seen: list[Any] = []
    before = dict(os.environ)
    monkeypatch.setattr(launch.logs, "begin", lambda *_: None)  # it would outlive the test
    monkeypatch.setattr(launch, "_run", lambda *parts: seen.append(parts))
    yield seen
    os.environ.clear()  # a start tells vLLM, and would tell the tests that follow
    os.environ.update(before)


def serve(home: Path) -> Result:
    arguments = ["serve", "--home", str(home), "--port", str(free_port())]
    return CliRunner().invoke(cli.app, arguments)


def said(result: Result, capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join((result.output + capfd.readouterr().err).split())


def test_tables_of_a_newer_program_are_refused_with_what_to_do(
    home: Path, starts: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with for_writes(Registry.open(home).database.engine).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    result = serve(home)
    assert (result.exit_code, starts) == (1, [])
    assert f"newer program: 9999, here {SCHEMA} run the newer program" in said(result, capfd)


def test_tables_of_the_first_program_are_brought_up_to_date(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "modiste.db")
    config = Config()
    scripts = Path(adapters.connect.__file__).parent / "migrations"
    config.set_main_option("script_location", str(scripts))
    with for_writes(adapters.connect._sqlite(url)).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    with open_database(url).connect() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert found == SCHEMA
    assert Registry.open(tmp_path).adapters() == []


def test_a_version_without_its_files_stops_no_server(
    home: Path, starts: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry.open(home)
    shutil.rmtree(registry.find("y@1").folder)
    (registry.find("x@1").folder / "manifest.json").write_text("{")

    assert serve(home).exit_code == 0
    assert len(starts) == 1
    assert capacity.lora_rank(Settings(), registry) == 16
    assert sorted(record.levelname for record in caplog.records) == ["WARNING", "WARNING"]
    assert "no manifest in the store" in caplog.text


def test_a_store_that_is_gone_stops_no_server_and_is_asked_a_few_times_only(
    home: Path, starts: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(home / "store")
    registry = Registry.open(home)

    assert serve(home).exit_code == 0
    assert capacity.lora_rank(Settings(), registry) == 16
    assert len(caplog.records) == 3
    versions, wrong = registry.readable()
    assert (versions, len(wrong)) == ([], 3)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_home_that_can_t_be_written_is_refused_with_what_to_do(
    home: Path, starts: list[Any], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:  # fmt: skip
    _break_writes(monkeypatch, number)
    result = serve(home)
    assert (result.exit_code, starts) == (2, [])
    told = said(result, capfd)
    assert f"{home} can't be written: {os.strerror(number)}; mount it writable" in told


def test_a_full_disk_is_said_and_what_is_live_is_served(
    home: Path, starts: list[Any], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _break_writes(monkeypatch, errno.ENOSPC)
    assert serve(home).exit_code == 0
    assert len(starts) == 1
    assert f"the disk of {home} is full: what is live is served" in caplog.text


def _break_writes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(**_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
