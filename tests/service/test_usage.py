"""Usage: counted once, whoever counts and whatever is away meanwhile."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.admin.organization import UsageCompletionsResponse
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from adapters.connect import Database
from adapters.errors import InvalidInput, StoreFailed
from adapters.registry import Registry
from service import usage
from service.cli import app
from service.models import Resolved
from service.objects import LATEST
from service.record import Record
from service.usage import GROUPS, OTHER, Counts, Ledger, Usage
from tests.service.desk import Desk, desk

TODAY = date(2026, 3, 1)
EVER = (date(2000, 1, 1), date(2100, 1, 1))
CHAT = "/v1/chat/completions"


@pytest.fixture
def database(tmp_path: Path, database: str) -> Database:
    return Registry.open(tmp_path).database


def record(
    project: str = "ours", model: str | None = "x@1", tokens: tuple[int, int] = (10, 3), **more: Any
) -> Record:
    given = {"caller": "key_1", "status": 200, "cached_tokens": 4} | more
    made = Record("id", given.pop("route", CHAT), project, **given)
    made.prompt_tokens, made.completion_tokens = tokens
    made.model = None if model is None else Resolved(model, "sha256:ab", "proved")
    return made


def ledger(database: Database, today: date = TODAY) -> Ledger:
    return Ledger(database, lambda: today)


def told(database: Database, *by: str) -> dict[tuple[Any, ...], Counts]:
    sums = Usage(database).sums(*EVER, by)
    return {tuple(one.group.values()): one.counts for one in sums}


def test_requests_add_up_by_every_group(database: Database) -> None:
    counting = ledger(database)
    for one in (
        record(), record(), record(model="y@2"), record("theirs", route="/v1/generate"),
        record(caller="key_2", status=500, failed=True, tokens=(10, 0)),
    ):  # fmt: skip
        counting.observe(one)
    asyncio.run(counting.send())
    assert told(database) == {(): Counts(5, 1, 50, 20, 12)}
    assert told(database, "model") == {
        ("x@1",): Counts(4, 1, 40, 16, 9), ("y@2",): Counts(1, 0, 10, 4, 3)
    }  # fmt: skip
    assert told(database, *GROUPS)[TODAY, "ours", "key_1", "x@1", CHAT] == Counts(2, 0, 20, 8, 6)
    assert told(database, "key").keys() == {("key_1",), ("key_2",)}


def test_servers_and_reports_meet_in_the_same_rows(database: Database) -> None:
    servers = [ledger(database) for _ in range(4)]

    async def report() -> None:
        for _ in range(5):
            for server in servers:
                server.observe(record())
            await asyncio.gather(*(server.send() for server in servers))

    asyncio.run(report())
    assert told(database, "day", "model") == {(TODAY, "x@1"): Counts(20, 0, 200, 80, 60)}


@pytest.mark.parametrize(
    ("refused", "counts"),
    [
        (record(model=None, tokens=(0, 0), status=401), 0),
        (record(model=None, tokens=(0, 0), status=404), 0),
        (record(tokens=(0, 0), status=400), 0),
        (record(tokens=(10, 2), status=400), 1),  # its tokens were used all the same
        (record(tokens=(10, 2), status=0), 1),  # the caller went away
        (record(tokens=(0, 0), status=503), 1),
        (record(tokens=(0, 0), status=200), 1),
    ],
)
def test_what_was_refused_is_no_usage(database: Database, refused: Record, counts: int) -> None:
    counting = ledger(database)
    counting.observe(refused)
    asyncio.run(counting.send())
    assert sum(found.requests for found in told(database).values()) == counts


class Breaking(Database):
    """A database that is away for some transactions, or breaks after their commit."""

    def __init__(self, database: Database, *ways: str) -> None:
        super().__init__(database.engine)
        self.ways = list(ways)

    @contextmanager
    def write(self) -> Iterator[Session]:
        way = self.ways.pop(0) if self.ways else ""
        if way == "away":
            raise StoreFailed("away")
        with super().write() as session:
            yield session
            if way == "rolled back":
                raise StoreFailed("broken")
        if way == "committed":
            raise StoreFailed("broken")


@pytest.mark.parametrize("way", ["away", "rolled back", "committed"])
def test_a_database_that_breaks_loses_nothing_and_counts_nothing_twice(
    database: Database, way: str
) -> None:
    counting = ledger(Breaking(database, way, way, "", way))

    async def report() -> None:
        for _ in range(3):  # the last one fails at the second of its two reports
            counting.observe(record())
            with pytest.raises(StoreFailed):
                await counting.send()
        await counting.send()

    asyncio.run(report())
    assert told(database) == {(): Counts(3, 0, 30, 12, 9)}


def test_what_is_counted_while_a_report_is_under_way_is_in_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = ledger(database)
    write = counting._write

    def slow(*report: Any) -> None:
        counting.observe(record(model="y@2"))
        monkeypatch.setattr(counting, "_write", write)
        write(*report)

    monkeypatch.setattr(counting, "_write", slow)
    counting.observe(record())
    asyncio.run(counting.send())
    assert told(database, "model").keys() == {("x@1",), ("y@2",)}


@pytest.mark.parametrize("while_writing", [False, True])
def test_the_end_of_the_server_brings_in_the_rest(
    database: Database, monkeypatch: pytest.MonkeyPatch, while_writing: bool
) -> None:
    monkeypatch.setattr(usage, "EVERY_S", 0.01 if while_writing else 60.0)
    counting = ledger(database)

    async def serve() -> None:
        task = asyncio.create_task(counting.run())
        for _ in range(20):
            counting.observe(record())
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(serve())
    assert told(database) == {(): Counts(20, 0, 200, 80, 60)}


def test_a_database_that_comes_back_gets_everything(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage, "EVERY_S", 0.01)
    breaking = Breaking(database, *["away"] * 3)
    counting = ledger(breaking)

    async def serve() -> None:
        task = asyncio.create_task(counting.run())
        while breaking.ways:
            counting.observe(record())
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(serve())
    (counts,) = told(database).values()
    assert counts.prompt_tokens == 10 * counts.requests >= 30
    assert "kept in memory" in caplog.text
    assert "lost" not in caplog.text


def test_what_can_not_be_kept_at_the_end_is_said(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    counting = ledger(Breaking(database, *["away"] * 9))
    counting.observe(record())

    async def serve() -> None:
        task = asyncio.create_task(counting.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(serve())
    assert "the usage of 1 requests is lost" in caplog.text


def test_memory_is_bounded_and_a_project_pays_for_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_LINES", 3)
    counting = ledger(database)
    for number in range(50):
        counting.observe(record("ours" if number % 2 else "theirs", model=f"x@{number}"))
    assert len(counting._lines) == 5  # and one more for each project
    asyncio.run(counting.send())
    assert {key: counts.requests for key, counts in told(database, "project").items()} == {
        ("ours",): 25, ("theirs",): 25
    }  # fmt: skip
    assert told(database, "model")[OTHER,].requests == 47


def test_too_many_sums_are_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_RESULTS", 2)
    counting = ledger(database)
    for number in range(3):
        counting.observe(record(model=f"x@{number}"))
    asyncio.run(counting.send())
    with pytest.raises(InvalidInput, match="over 2 sums"):
        told(database, "model")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Ten days of one request each of ours, one of theirs today."""
    with desk(tmp_path_factory.mktemp("home")) as served:
        today = datetime.now(UTC).date()
        for ago in range(10):
            counting = ledger(served.registry.database, today - timedelta(days=ago))
            counting.observe(record(model=f"x@{ago % 2}"))
            if ago == 0:
                counting.observe(record("theirs", caller="key_9"))
            asyncio.run(counting.send())
        yield served


class TestTheRoute:
    def ask(self, served: Desk, project: str = "ours", **query: Any) -> httpx.Response:
        with served.http(project) as http:
            return http.get("/v1/usage", params=query)

    def test_days_come_last_first_in_openais_shape(self, served: Desk) -> None:
        answer = self.ask(served, days=3).json()
        # as OpenAI's client reads it
        UsageCompletionsResponse.model_validate({**answer, "object": "page"})
        today = datetime.now(UTC).date()
        assert [bucket["id"] for bucket in answer["data"]] == [
            (today - timedelta(days=ago)).isoformat() for ago in range(3)
        ]
        first = answer["data"][0]
        assert first["end_time"] - first["start_time"] == 86_400
        assert first["results"] == [
            {
                "object": "organization.usage.completions.result", "input_tokens": 10,
                "input_cached_tokens": 4, "output_tokens": 3, "num_model_requests": 1,
                "num_failed_requests": 0, "project_id": None, "api_key_id": None, "model": None,
                "route": None,
            }
        ]  # fmt: skip

    def test_groups_without_days_are_one_bucket(self, served: Desk) -> None:
        answer = self.ask(
            served, days=10, **{"group_by": ["model", "api_key_id"], "group_by[]": "project_id"}
        )
        (bucket,) = answer.json()["data"]
        assert [
            (one["project_id"], one["api_key_id"], one["model"], one["num_model_requests"])
            for one in bucket["results"]
        ] == [("ours", "key_1", "x@0", 5), ("ours", "key_1", "x@1", 5)]

    def test_only_the_callers_project_is_told(self, served: Desk) -> None:
        (bucket,) = self.ask(served, "theirs", group_by="project,key").json()["data"]
        (one,) = bucket["results"]
        assert (one["project_id"], one["api_key_id"]) == ("theirs", "key_9")

    def test_pages_meet_without_a_gap(self, served: Desk) -> None:
        seen, query = [], {"days": 10, "limit": 4}
        while True:
            answer = self.ask(served, **query).json()
            seen += answer["data"]
            if not answer["has_more"]:
                break
            query["after"] = answer["last_id"]
        assert len({bucket["id"] for bucket in seen}) == len(seen) == 10
        assert sum(len(bucket["results"]) for bucket in seen) == 10

    def test_times_choose_whole_days_the_end_excluded(self, served: Desk) -> None:
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = int(today.timestamp())
        answer = self.ask(served, start_time=end - 2 * 86_400 + 5, end_time=end).json()
        days = [today - timedelta(days=ago) for ago in (1, 2)]
        assert [bucket["id"] for bucket in answer["data"]] == [f"{d:%Y-%m-%d}" for d in days]

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ({"group_by": "colour"}, "group_by"),
            ({"days": 1, "start_time": 5}, "days"),
            ({"start_time": 50, "end_time": 50}, "end_time"),
            ({"start_time": 0}, "start_time"),
            ({"after": "yesterday"}, "after"),
            ({"days": 0}, "query.days"),
            ({"limit": 367}, "query.limit"),
            ({"end_time": 10**15}, "query.end_time"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, served: Desk, query: dict[str, Any], param: str
    ) -> None:
        answer = self.ask(served, **query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize("end", [1, 86_400, 5 * 86_400, LATEST])
    def test_the_first_and_last_days_of_all_are_empty(self, served: Desk, end: int) -> None:
        answer = self.ask(served, end_time=end).json()
        assert answer["data"][0]["end_time"] >= end
        assert all(bucket["results"] == [] for bucket in answer["data"])


class TestTheCommand:
    def run(self, home: Path, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["usage", *arguments, "--home", str(home)])

    def test_all_projects_are_told(self, tmp_path: Path) -> None:
        assert "nothing was used" in self.run(tmp_path).stdout
        counting = ledger(Registry.open(tmp_path).database, datetime.now(UTC).date())
        for one in (record(), record("theirs", tokens=(12_345, 1))):
            counting.observe(one)
        asyncio.run(counting.send())
        rows = json.loads(self.run(tmp_path, "--json").stdout)
        assert [(row["project"], row["model"], row["prompt_tokens"]) for row in rows] == [
            ("ours", "x@1", 10), ("theirs", "x@1", 12_345)
        ]  # fmt: skip
        assert "12,345" in self.run(tmp_path, "--by", "day,project").stdout
        (alone,) = json.loads(self.run(tmp_path, "--project", "ours", "--by", "", "--json").stdout)
        assert alone["requests"] == 1

    def test_an_unknown_group_is_refused(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "--by", "colour")
        assert isinstance(done.exception, InvalidInput) or done.exit_code == 2
