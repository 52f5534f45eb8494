"""Keys: made once, kept as digests, revoked for ever."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from adapters import connect
from adapters.connect import Database
from adapters.database_url import parse_database_url
from adapters.errors import AdapterError, InvalidInput, StoreFailed
from adapters.registry import Registry
from service.auth import Authenticator
from service.cli import app
from service.errors import Unauthenticated
from service.keys import PREFIX, Key, Keys, digest
from service.limiting.limits import LIMITS, NO_LIMITS, Limits
from service.projects import Projects
from service.scopes import ADMIN, ALL, DEFAULT, INFER, TRAIN


@pytest.fixture
def keys(registry: Registry) -> Keys:
    return Keys(registry.database)


def caller(keys: Keys, secret: str) -> Any:
    return Authenticator([], keys).caller(f"Bearer {secret}")


def test_a_key_opens_its_project_and_is_kept_nowhere(keys: Keys, registry: Registry) -> None:
    key, secret = keys.create("team", "a notebook")
    assert secret.startswith(PREFIX)
    assert len(secret) == len(PREFIX) + 32
    assert (caller(keys, secret).name, caller(keys, secret).project) == (key.id, "team")
    with registry.database.read() as session:
        rows = session.execute(text("select * from api_keys")).all()
    assert secret not in repr(rows)
    assert secret[len(PREFIX) :] not in repr(rows)


def test_two_keys_of_a_project_are_told_apart(keys: Keys) -> None:
    (one, first), (two, second) = keys.create("team"), keys.create("team")
    assert first != second
    assert [key.id for key in keys.all("team")] == [one.id, two.id]
    assert keys.all("other") == []


def test_a_revoked_key_opens_nothing_and_no_door_is_left_open(keys: Keys) -> None:
    key, secret = keys.create("team")
    keys.revoke(key.id)
    for given in (secret, "anything-else-at-all"):
        with pytest.raises(Unauthenticated):
            caller(keys, given)
    first = keys.revoke(key.id).revoked  # again
    assert first == keys.all()[0].revoked


def test_work_goes_on_while_its_key_works(keys: Keys) -> None:
    key, short = keys.create("ours")[0], keys.create("ours", lasts=timedelta(milliseconds=1))[0]
    assert keys.opens(key.id)
    assert not keys.opens(short.id)
    keys.revoke(key.id)
    assert not keys.opens(key.id)
    assert keys.opens("key-0123abcd")  # of the settings
    assert keys.opens("")


def test_a_key_expires(keys: Keys) -> None:
    key, secret = keys.create("team", lasts=timedelta(days=1))
    assert caller(keys, secret).project == "team"
    assert not key.works(datetime.now(UTC) + timedelta(days=2))
    _, gone = keys.create("team", lasts=timedelta(microseconds=1))
    with pytest.raises(Unauthenticated, match="expired"):
        caller(keys, gone)


@pytest.mark.parametrize(
    ("project", "name", "lasts", "message"),
    [
        ("Team", "", None, "project 'Team'"),
        ("../x", "", None, "not a valid name"),
        ("team", "x" * 65, None, "name"),
        ("team", "two\nlines", None, "one line"),
        ("team", "", timedelta(0), "expired already"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(
    keys: Keys, project: str, name: str, lasts: timedelta | None, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        keys.create(project, name, lasts)
    assert keys.all() == []


@pytest.mark.parametrize("unknown", ["key_000000000000", "", "key_'; drop table api_keys"])
def test_an_unknown_key_can_not_be_revoked(keys: Keys, unknown: str) -> None:
    with pytest.raises(InvalidInput, match="no key"):
        keys.revoke(unknown)


def test_keys_of_the_settings_and_of_the_database_work_side_by_side(keys: Keys) -> None:
    fixed = "a-key-of-sixteen-characters"
    _, secret = keys.create("team")
    authenticator = Authenticator([fixed], keys)
    assert authenticator.caller(f"Bearer {fixed}").project == "default"
    assert authenticator.caller(f"Bearer {secret}").project == "team"


class Source:
    """A database that is away at the second look."""

    def __init__(self, known: dict[bytes, Key]) -> None:
        self.known, self.asked = known, 0

    def by_digest(self) -> dict[bytes, Key]:
        self.asked += 1
        if self.asked == 2:
            raise StoreFailed("gone")
        return self.known


def test_keys_made_later_are_noticed_and_stay_known_while_the_database_is_away(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.auth.REFRESH_S", 0.01)
    _, first = keys.create("team")
    source = Source(keys.by_digest())
    authenticator = Authenticator([], source)

    async def follow_until(looks: int) -> None:
        following = asyncio.create_task(authenticator.follow())
        while source.asked < looks:  # noqa: ASYNC110 - the source is asked in a thread
            await asyncio.sleep(0.01)
        following.cancel()

    asyncio.run(follow_until(2))
    assert authenticator.caller(f"Bearer {first}").project == "team"
    _, later = keys.create("other")
    source.known = keys.by_digest()
    asyncio.run(follow_until(5))
    assert authenticator.caller(f"Bearer {later}").project == "other"


def test_keys_from_before_there_were_scopes_may_do_all_that_they_could(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = Registry.open(tmp_path).database.engine.url
    if database == "postgresql":
        url = parse_database_url(request.getfixturevalue("postgres").empty())
    else:
        url = url.set(database=str(tmp_path / "old.db"))
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(connect.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        connection.execute(text("INSERT INTO projects VALUES ('team', '2026-01-01 00:00:00')"))
        connection.execute(
            text(
                "INSERT INTO api_keys (id, digest, project, name, created)"
                " VALUES ('key_abcdefghijkl', :digest, 'team', '', '2026-01-01 00:00:00')"
            ),
            {"digest": digest("an-old-secret")},
        )
    engine.dispose()

    keys = Keys(Database(connect.open_database(url)))
    assert caller(keys, "an-old-secret").scopes == ALL
    assert keys.all("team")[0].limits == NO_LIMITS
    assert keys.create("team")[0].scopes == DEFAULT


def test_a_key_has_the_scopes_that_it_was_made_with(keys: Keys) -> None:
    assert caller(keys, keys.create("team")[1]).scopes == DEFAULT == INFER | TRAIN
    assert caller(keys, keys.create("team", scopes=ADMIN)[1]).scopes == ADMIN
    assert Authenticator(["a-key-of-sixteen-characters"]).caller(
        "Bearer a-key-of-sixteen-characters"
    ).scopes == ALL  # fmt: skip
    with pytest.raises(InvalidInput, match="no scope"):
        keys.create("team", scopes=frozenset())


def test_a_scope_that_only_a_newer_program_knows_opens_nothing(
    keys: Keys, registry: Registry
) -> None:
    _, secret = keys.create("team", scopes=INFER)
    with registry.database.write() as session:
        session.execute(text("UPDATE api_keys SET scopes = 'infer billing'"))
    assert caller(keys, secret).scopes == INFER


def test_limits_are_changed_one_by_one(keys: Keys) -> None:
    key, _ = keys.create("team", limits=Limits(10, 20))
    assert keys.limited() == {key.id: Limits(10, 20)}
    assert keys.limit(key.id, {"tokens_per_minute": None, "concurrent": 3}).limits == Limits(
        10, None, 3
    )
    keys.limit(key.id, dict.fromkeys(LIMITS))
    assert keys.limited() == {}
    with pytest.raises(InvalidInput, match="no key"):
        keys.limit("key_000000000000", {"concurrent": 1})


class TestTheCommand:
    def run(self, home: Path, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["keys", *arguments, "--home", str(home)])

    def test_a_key_is_alone_on_stdout_and_listed_without_itself(self, tmp_path: Path) -> None:
        made = self.run(tmp_path, "create", "--project", "team", "--name", "ci", "--expires", "90d")
        secret = made.stdout.strip()
        assert made.exit_code == 0
        assert caller(Keys(Registry.open(tmp_path).database), secret).project == "team"
        listed = self.run(tmp_path, "list", "--json")
        (one,) = json.loads(listed.stdout)
        assert (one["project"], one["name"], one["state"]) == ("team", "ci", "works")
        assert secret not in listed.stdout
        assert "team" in self.run(tmp_path, "list").stdout
        revoked = self.run(tmp_path, "revoke", one["id"])
        assert "revoked" in revoked.stdout
        (after,) = json.loads(self.run(tmp_path, "list", "--json").stdout)
        assert after["state"] == "revoked"

    def test_an_empty_list_says_what_to_do(self, tmp_path: Path) -> None:
        assert "modiste keys create" in self.run(tmp_path, "list").stdout

    def test_scopes_and_limits_are_given_listed_and_changed(self, tmp_path: Path) -> None:
        self.run(
            tmp_path, "create", "--scope", "infer", "--scope", "admin",
            "--requests-per-minute", "100", "--concurrent", "none",
        )  # fmt: skip

        def listed() -> dict[str, Any]:
            (one,) = json.loads(self.run(tmp_path, "list", "--json").stdout)
            return dict(one)

        one = listed()
        assert one["scopes"] == ["infer", "admin"]
        assert one["limits"] == {
            "requests_per_minute": 100, "tokens_per_minute": "default", "concurrent": "none"
        }  # fmt: skip
        changed = self.run(tmp_path, "limit", one["id"], "--tokens-per-minute=5000")
        assert "100 requests/min, 5,000 tokens/min" in changed.stdout
        self.run(tmp_path, "limit", one["id"], "--requests-per-minute=default")
        assert listed()["limits"]["requests_per_minute"] == "default"
        assert listed()["limits"]["tokens_per_minute"] == 5000

    @pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "9" * 20, "١"])
    def test_a_limit_that_is_none_is_refused(self, tmp_path: Path, value: str) -> None:
        done = self.run(tmp_path, "create", f"--requests-per-minute={value}")
        assert (done.exit_code, "is no limit" in done.output) == (2, True)
        assert Keys(Registry.open(tmp_path).database).all() == []

    def test_an_unknown_scope_or_no_limit_is_refused(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "create", "--scope", "root").exit_code == 2
        done = self.run(tmp_path, "limit", "key_000000000000")
        assert (done.exit_code, "no limit is given" in done.output) == (2, True)

    @pytest.mark.parametrize("span", ["90", "d", "1w", "-1d", "0d"])
    def test_a_span_that_is_none_is_refused(self, tmp_path: Path, span: str) -> None:
        done = self.run(tmp_path, "create", f"--expires={span}")
        assert done.exit_code == 2 or isinstance(done.exception, AdapterError)
        assert Keys(Registry.open(tmp_path).database).all() == []


class TestProjects:
    def run(self, home: Path, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["projects", *arguments, "--home", str(home)])

    def test_a_projects_limits_are_set_and_listed(self, tmp_path: Path) -> None:
        assert "modiste keys create" in self.run(tmp_path, "list").stdout
        Keys(Registry.open(tmp_path).database).create("team")
        said = self.run(tmp_path, "limit", "team", "--tokens-per-minute", "1000", "--json")
        assert json.loads(said.stdout)["limits"]["tokens_per_minute"] == 1000
        (one,) = json.loads(self.run(tmp_path, "list", "--json").stdout)
        assert (one["name"], one["keys"]) == ("team", 1)
        assert one["limits"]["tokens_per_minute"] == 1000
        assert "1,000" in self.run(tmp_path, "list").stdout

    def test_the_default_project_may_be_limited_before_it_has_a_key(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "limit", "default", "--concurrent=4").exit_code == 0
        projects = Projects(Registry.open(tmp_path).database)
        assert projects.limited() == {"default": Limits(concurrent=4)}
        with pytest.raises(InvalidInput, match="no project 'other'"):
            projects.limit("other", {"concurrent": 4})
