"""Where the database's address comes from, what is refused, and that it keeps its secret."""

import traceback
from pathlib import Path

import pytest

from adapters.database_url import find_database, parse_database_url, shown
from adapters.errors import InvalidInput
from adapters.home import Home

SECRET = "hunter2"


def test_the_environment_wins_over_the_file_over_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "a?b")
    home.root.mkdir()
    assert find_database(home).database == str(home.root / "modiste.db")

    home.settings.write_text("database_url: postgresql://filed/x\nport: 1\n")
    assert find_database(home).host == "filed"

    monkeypatch.setenv("MODISTE_DATABASE_URL", "postgresql://named/x")
    assert find_database(home).host == "named"


def test_an_empty_address_is_a_mistake_and_not_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", "")

    with pytest.raises(InvalidInput, match="database_url"):
        find_database(Home(tmp_path))


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_postgresql_gets_its_driver_and_keeps_its_parameters(scheme: str) -> None:
    url = parse_database_url(f"{scheme}://ann:a%40b@db:5433/modiste?sslmode=require")

    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port) == ("ann", "a@b", "db", 5433)
    assert (url.database, dict(url.query)) == ("modiste", {"sslmode": "require"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"mysql://u:{SECRET}@h/x", "mysql, which is not supported"),
        (f"postgresql+asyncpg://u:{SECRET}@h/x", "asyncpg"),
        (SECRET, "not an address"),
        (f"postgresql://h:{SECRET}/x", "not an address"),
        (f"postgresql://u:a@{SECRET}@h/x", "%40"),
        (f"postgresql://u:{SECRET}@h", "names no database"),
        (f"postgresql://h/x?password={SECRET}", "among its parameters"),
        ("sqlite://", "whole path"),
        ("sqlite:///modiste.db", "whole path"),
        ("sqlite:////a/b.db?mode=ro", "nothing else"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy_and_without_the_secret(
    text: str, why: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_database_url(text)

    assert why in str(caught.value)
    assert "database_url" in caught.value.message
    assert "write postgresql://" in caught.value.hint
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_address_is_shown_without_its_password_and_parameters() -> None:
    url = parse_database_url(f"postgresql://ann:{SECRET}@db/x?sslkey={SECRET}")

    assert shown(url) == "postgresql://ann:***@db/x"
    assert SECRET not in f"{url} {url!r}".replace(f"sslkey={SECRET}", "")


def test_settings_that_are_no_yaml_are_told_without_their_lines(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings.write_text(f"port: 1\ndatabase_url: postgresql://u:{SECRET}@h/x: y\n")

    with pytest.raises(InvalidInput, match="line 2: not valid YAML") as caught:
        find_database(home)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
