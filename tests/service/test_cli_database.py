"""`modiste database`: what it prints, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.database import SCHEMA
from service import cli


@pytest.fixture
def modiste(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run the command on a new home; its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.app(["database", *arguments], prog_name="modiste")
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    monkeypatch.setenv("MODISTE_HOME", str(tmp_path))
    return run


def test_status_fails_until_the_tables_are_those_of_this_release(modiste: Any) -> None:
    code, text, _ = modiste("status")
    assert (code, "no tables" in text) == (1, True)

    code, text, _ = modiste("upgrade")
    assert (code, f"no tables -> {SCHEMA}" in text.replace("\n", " ")) == (0, True)
    assert modiste("status")[0] == 0
    assert "is up to date" in modiste("upgrade")[1].replace("\n", " ")


def test_json_tells_what_was_found_and_done(modiste: Any) -> None:
    found = json.loads(modiste("status", "--json")[1])
    assert (found["found"], found["wanted"], found["current"]) == (None, SCHEMA, False)

    assert json.loads(modiste("upgrade", "--json")[1])["upgraded"] is True
    assert json.loads(modiste("upgrade", "--json")[1])["upgraded"] is False


def test_a_database_that_is_away_may_be_tried_again(
    modiste: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:9/x")
    code, _, told = modiste("upgrade")

    assert code == 1
    assert "check that it runs" in told
    assert "hunter2" not in told
