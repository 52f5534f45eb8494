"""What was backed up, wiped and restored is all there, on either database, and goes on."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import InvalidInput, StoreFailed
from adapters.home import RESTORING, Home
from adapters.registry import Registry
from service.backups.about import MARK, PARTIAL
from service.backups.making import back_up
from service.backups.restoring import restore
from service.cli import app
from service.files import About
from service.jobs.queue import Jobs, Order
from service.keys import Keys
from tests.adapters.parcels import draft, parcel
from tests.postgres import Postgres
from tests.service.backups.conftest import dies, filled, reopened, rows
from tests.service.filled import files_of


def quiet(_step: str) -> None:
    pass


def wiped(full: Registry) -> Home:
    full.database.engine.dispose()
    shutil.rmtree(full.home.root)
    return full.home


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_after_a_wipe_everything_is_there_again_and_goes_on(
    full: Registry, tmp_path: Path, into: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(full)
    contents = {key: files_of(full).contents.read(key) for key in files_of(full).contents.files()}
    back_up(full, tmp_path / "backup", tell=quiet)
    home = wiped(full)
    monkeypatch.delenv("MODISTE_DATABASE_URL", raising=False)
    if into == "postgresql":
        monkeypatch.setenv("MODISTE_DATABASE_URL", postgres.empty())

    about, counts = restore(tmp_path / "backup", home, quiet)

    registry = Registry.open(home.root)
    assert rows(registry) == before
    assert counts == about.counts
    for name in ("of-ours", "of-theirs"):
        assert registry.aliases(name) == {"production": 1}
        assert registry.verified(name).number == 1
    remote = files_of(registry).contents
    assert {key: remote.read(key) for key in remote.files()} == contents
    assert (registry.base("b").path / "config.json").read_text() == "the config.json"
    assert home.settings.read_text() == "queue_wait_s: 7\n"
    assert not list(home.root.glob("*restoring*"))
    # numbers go on after the last ones
    made = parcel(tmp_path / "next", 5.0)
    assert registry.publish(made, draft(made, "of-ours", project="ours")).number == 2
    file = files_of(registry).add(made / "probe.json", About("ours", "a", "evals"))
    Jobs(registry.database).create(Order("ours", "k", "b", file.id, None, "", 0, {}, None, {}))
    Keys(registry.database).create("ours")
    registry.promote("of-ours@2")


def test_a_home_elsewhere_finds_its_base_models(tmp_path: Path) -> None:
    back_up(filled(tmp_path), tmp_path / "backup", tell=quiet)
    restore(tmp_path / "backup", Home(tmp_path / "elsewhere"), quiet)
    registry = Registry.open(tmp_path / "elsewhere")
    assert registry.base("b").path == tmp_path / "elsewhere" / "bases" / "b"


def test_a_base_model_that_was_left_out_is_told(tmp_path: Path) -> None:
    back_up(filled(tmp_path), tmp_path / "backup", bases=False, tell=quiet)
    told: list[str] = []
    restore(tmp_path / "backup", Home(tmp_path / "elsewhere"), told.append)
    assert [step for step in told if "base model b is not in the backup" in step]


def test_versions_and_files_come_back_into_stores_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("store", "files"):
        (tmp_path / f"far-{name}").mkdir()
        monkeypatch.setenv(f"MODISTE_{name.upper()}_URL", f"file://{tmp_path}/far-{name}")
    full = filled(tmp_path)
    before = rows(full)
    back_up(full, tmp_path / "backup", tell=quiet)
    home = wiped(full)
    survivor = next((tmp_path / "far-store").rglob("adapter_model.safetensors"))
    written = survivor.stat().st_ino
    shutil.rmtree(tmp_path / "far-files")
    (tmp_path / "far-files").mkdir()

    restore(tmp_path / "backup", home, quiet)

    registry = Registry.open(home.root)
    assert rows(registry) == before
    for name in ("of-ours", "of-theirs"):
        registry.verified(name)
    assert survivor.stat().st_ino == written  # what outlived the home is not sent again
    assert len(files_of(registry).contents.files()) == 6


def test_what_is_not_empty_is_not_restored_into(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = filled(tmp_path)
    back_up(full, tmp_path / "backup", tell=quiet)
    before = rows(full)
    with pytest.raises(InvalidInput, match="is not empty: it has bases"):
        restore(tmp_path / "backup", full.home, quiet)
    assert rows(full) == before

    monkeypatch.setenv("MODISTE_DATABASE_URL", postgres.ready())
    Keys(Registry.open(tmp_path / "other").database).create("others")
    with pytest.raises(InvalidInput, match="something in its table"):
        restore(tmp_path / "backup", Home(tmp_path / "new"), quiet)
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {RESTORING, "modiste.yaml"}


def test_what_is_no_whole_backup_is_not_restored(tmp_path: Path) -> None:
    full, target = filled(tmp_path), tmp_path / "backup"
    assert dies(3, lambda tell: back_up(reopened(full), target, tell=tell))
    new = Home(tmp_path / "new")
    with pytest.raises(InvalidInput, match="no whole backup"):
        restore(target.with_name(target.name + PARTIAL), new, quiet)
    back_up(full, target, tell=quiet)
    mark = target / MARK
    good = mark.read_text()
    mark.write_text(good.replace('"tables": "0', '"tables": "9'))
    with pytest.raises(InvalidInput, match="newer program"):
        restore(target, new, quiet)
    mark.write_text(good[:-10])
    with pytest.raises(InvalidInput, match="can't be read"):
        restore(target, new, quiet)
    mark.write_text(good)
    (target / "modiste.db").write_bytes(b"SQLite")
    with pytest.raises(InvalidInput, match="was altered"):
        restore(target, new, quiet)
    assert not new.root.exists()


def test_an_altered_version_stops_a_restore_before_its_database_is_there(tmp_path: Path) -> None:
    back_up(filled(tmp_path), tmp_path / "backup", tell=quiet)
    weights = next((tmp_path / "backup" / "store").rglob("adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreFailed, match="was altered"):
        restore(tmp_path / "backup", Home(tmp_path / "new"), quiet)
    assert not (tmp_path / "new" / "modiste.db").exists()


def test_a_restore_that_is_killed_is_gone_on_with(tmp_path: Path) -> None:
    full, home = filled(tmp_path), Home(tmp_path / "new")
    back_up(full, tmp_path / "backup", tell=quiet)
    step = 1
    while dies(step, lambda tell: restore(tmp_path / "backup", home, tell)):
        if (home.root / "modiste.db").exists():  # killed between its last two steps
            (home.root / RESTORING).unlink()
            break
        with pytest.raises(StoreFailed, match="has not come to its end"):
            Registry.open(home.root)
        step += 1
    assert step == 3  # base model, contents, database
    assert rows(Registry.open(home.root)) == rows(full)
    for name in ("of-ours", "of-theirs"):
        Registry.open(home.root).verified(name)


def test_the_commands_tell_what_they_did(tmp_path: Path) -> None:
    full = filled(tmp_path)
    run = CliRunner()
    home, target = str(full.home.root), str(tmp_path / "backup")
    made = run.invoke(app, ["backup", target, "--home", home, "--json"])
    assert json.loads(made.stdout)["counts"]["versions"] == 2
    assert "the base model b is copied" in made.stderr
    back = run.invoke(app, ["restore", target, "--home", str(tmp_path / "new")])
    assert back.exit_code == 0
    assert "2 versions, 2 aliases, 2 jobs, 2 files, 2 batches" in back.stdout
    whole = run.invoke(app, ["adapters", "verify", "--home", str(tmp_path / "new")])
    assert whole.exit_code == 0
    assert [line.split()[0] for line in whole.stdout.splitlines() if "is whole" in line] == [
        "of-theirs@1", "of-ours@1"
    ]  # fmt: skip
    weights = Registry.open(tmp_path / "new").find("of-ours").folder / "adapter_model.safetensors"
    weights.write_bytes(b"altered")
    altered = run.invoke(app, ["adapters", "verify", "--home", str(tmp_path / "new")])
    assert altered.exit_code == 1
    assert "of-ours@1: adapter_model.safetensors was altered" in altered.stderr
    assert "of-theirs@1" in altered.stdout

    next(full.home.files.glob("file-*")).unlink()
    partly = run.invoke(app, ["backup", str(tmp_path / "other"), "--home", home])
    assert partly.exit_code == 1
    assert "the home has it no more" in partly.stderr
