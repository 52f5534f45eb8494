"""Limits at the edge: who is refused, what is told, and what is free again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from adapters.errors import StoreFailed
from adapters.registry import Registry
from service.auth import Authenticator
from service.inside import ask
from service.keys import Keys
from service.limiting import limiter as limiting
from service.limiting.limiter import Limiter
from service.limiting.limits import NO_LIMITS, Defaults, Limits
from service.middleware import Bound, Bounds, Edge, Table
from service.models import Resolved
from service.projects import Projects
from service.record import PRIORITY_BATCH, Record, current_record
from service.telemetry import Metrics
from tests.service.batches.asked import create, line, until
from tests.service.desk import Desk, StandIn, desk

PATH = "/v1/generate"


class App:
    """Uses `tokens` for each request, after `gate` is open; tells how many run."""

    def __init__(self, tokens: int = 0) -> None:
        self.tokens, self.running, self.bodies = tokens, 0, list[bytes]()
        self.gate = asyncio.Event()
        self.gate.set()

    async def until_running(self, number: int) -> None:
        while self.running < number:  # noqa: ASYNC110 - for as long as the test may take
            await asyncio.sleep(0.01)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = current_record()
        assert record is not None
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        record.model, record.completion_tokens = Resolved("x@1", "sha256:ab", "proved"), self.tokens
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Door:
    """An edge with limits, and a key of the project `team`."""

    def __init__(self, registry: Registry, app: App, defaults: Defaults) -> None:
        keys = Keys(registry.database)
        self.key, secret = keys.create("team")
        self.refused: list[tuple[str, str]] = []
        self.limiter = Limiter(
            registry.database, defaults, 512, "here", lambda *over: self.refused.append(over)
        )
        self.edge = Edge(
            app, table=Table.of([PATH, "/health/live"]), authenticator=Authenticator([], keys),
            metrics=Metrics(CollectorRegistry()), bounds=Bounds(Bound(4000, "max_body_bytes"), {}),
            limiter=self.limiter,
        )  # fmt: skip
        transport = httpx.ASGITransport(self.edge, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {secret}"}
        self.http = httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers)

    async def post(self, **body: Any) -> httpx.Response:
        return await self.http.post(PATH, json={"prompt": "x", **body})

    async def settled(self) -> None:
        """What has ended is counted."""
        await asyncio.get_running_loop().run_in_executor(self.limiter._threads, lambda: None)
        await asyncio.sleep(0.05)


@asynccontextmanager
async def door(registry: Registry, app: App, defaults: Defaults) -> AsyncIterator[Door]:
    opened = Door(registry, app, defaults)
    async with opened.http:
        yield opened


def at_door(
    registry: Registry,
    visit: Callable[[Door, App], Awaitable[None]],
    limits: Limits = NO_LIMITS,
    **of_app: Any,
) -> None:
    async def go() -> None:
        app = App(**of_app)
        async with door(registry, app, Defaults(key=limits)) as opened:
            await visit(opened, app)

    asyncio.run(go())


def left(answer: httpx.Response, what: str = "tokens") -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{what}"])


def test_tokens_are_reserved_while_a_request_runs_and_settled_when_it_ends(
    registry: Registry,
) -> None:
    async def visit(opened: Door, app: App) -> None:
        answer = await opened.post(max_tokens=300)
        reserved = -(-len(app.bodies[0]) // 4) + 300
        assert left(answer) == 1000 - reserved
        await opened.settled()
        assert left(await opened.post(max_tokens=300)) == 1000 - 40 - reserved
        await opened.settled()
        refused = await opened.post(max_tokens=512, text="x" * 3000)
        assert refused.status_code == 429
        assert left(refused) == 920
        assert "tokens in a minute" in refused.json()["error"]["message"]

    at_door(registry, visit, Limits(tokens_per_minute=1000), tokens=40)


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (Limits(requests_per_minute=1), "requests_per_minute"),
        (Limits(tokens_per_minute=20), "tokens_per_minute"),
    ],
)
def test_refusals_are_counted_by_the_limit_and_whose_it_is(
    registry: Registry, limits: Limits, limit: str
) -> None:
    async def visit(opened: Door, _app: App) -> None:
        statuses = [(await opened.post(max_tokens=20)).status_code for _ in range(3)]
        assert statuses[1:] == [429, 429]
        assert opened.refused == [(limit, "key")] * 2

    at_door(registry, visit, limits, tokens=20)


def test_a_body_that_is_read_for_its_tokens_reaches_the_route_whole(registry: Registry) -> None:
    async def visit(opened: Door, app: App) -> None:
        async def pieces(*given: bytes) -> AsyncIterator[bytes]:
            for piece in given:
                yield piece

        whole = pieces(b'{"prompt": "', b"a" * 500, b'"}')
        await opened.http.post(PATH, content=whole)
        assert json.loads(app.bodies[0]) == {"prompt": "a" * 500}
        too_large = await opened.http.post(PATH, content=pieces(*[b"x" * 1000] * 9))
        assert too_large.json()["error"]["code"] == "request_too_large"
        assert len(app.bodies) == 1

    at_door(registry, visit, Limits(tokens_per_minute=10**6))


def test_places_are_free_when_requests_end_or_their_callers_go(registry: Registry) -> None:
    async def visit(opened: Door, app: App) -> None:
        app.gate.clear()
        first, second = (asyncio.create_task(opened.post()) for _ in range(2))
        await app.until_running(2)
        refused = await opened.post()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "2 requests at once" in refused.json()["error"]["message"]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await opened.settled()
        third = asyncio.create_task(opened.post())
        await app.until_running(2)
        app.gate.set()
        assert [(await task).status_code for task in (second, third)] == [200, 200]
        await opened.settled()
        assert [(await opened.post()).status_code for _ in range(3)] == [200] * 3

    at_door(registry, visit, Limits(concurrent=2))


def test_a_caller_who_goes_while_it_is_counted_leaves_nothing_behind(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def visit(opened: Door, app: App) -> None:
        shared = opened.limiter._shared
        take = shared.take

        def slow(asked: Any) -> Any:
            time.sleep(0.2)
            return take(asked)

        monkeypatch.setattr(shared, "take", slow)
        asking = asyncio.create_task(opened.post())
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.3)
        await opened.settled()
        assert app.bodies == []
        assert (await opened.post()).status_code == 200

    at_door(registry, visit, Limits(requests_per_minute=1, concurrent=1))


def test_who_has_no_limit_never_asks_the_database(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def visit(opened: Door, _: App) -> None:
        monkeypatch.setattr(opened.limiter._threads, "submit", None)
        answers = [await opened.post() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert not [name for name in answers[0].headers if name.startswith("x-ratelimit")]

    at_door(registry, visit)


def test_probes_are_not_limited(registry: Registry) -> None:
    async def visit(opened: Door, _: App) -> None:
        answers = [await opened.http.get("/health/live") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3

    at_door(registry, visit, Limits(requests_per_minute=1))


def test_while_the_database_is_away_the_server_counts_by_itself(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def visit(opened: Door, app: App) -> None:
        nonlocal asked
        shared = opened.limiter._shared
        take = shared.take

        def gone(_: Any) -> Any:
            nonlocal asked
            asked += 1
            raise StoreFailed("gone")

        monkeypatch.setattr(shared, "take", gone)
        statuses = [(await opened.post()).status_code for _ in range(4)]
        assert (statuses, asked) == ([200, 200, 429, 429], 1)
        monkeypatch.setattr(shared, "take", take)
        opened.limiter._away_until = 0.0
        assert (await opened.post()).status_code == 200

    at_door(registry, visit, Limits(requests_per_minute=2))


def test_what_could_not_be_settled_is_settled_later(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiting, "FOLLOW_S", 0.05)

    async def visit(opened: Door, app: App) -> None:
        shared = opened.limiter._shared
        settle = shared.settle

        def gone(*_: Any, **__: Any) -> None:
            raise StoreFailed("gone")

        monkeypatch.setattr(shared, "settle", gone)
        assert (await opened.post()).status_code == 200
        await opened.settled()
        assert (await opened.post()).status_code == 429
        monkeypatch.setattr(shared, "settle", settle)
        running = asyncio.create_task(opened.limiter.run())
        await asyncio.sleep(0.5)
        running.cancel()
        assert (await opened.post()).status_code == 200

    at_door(registry, visit, Limits(concurrent=1))


def test_a_place_that_was_taken_before_the_answer_was_lost_is_freed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def visit(opened: Door, _: App) -> None:
        shared = opened.limiter._shared
        take = shared.take

        def lost(asked: Any) -> Any:
            take(asked)
            raise StoreFailed("the connection broke")

        monkeypatch.setattr(shared, "take", lost)
        assert (await opened.post()).status_code == 200  # counted by the server itself
        monkeypatch.setattr(shared, "take", take)
        opened.limiter._away_until = 0.0
        assert (await opened.post()).status_code == 429
        opened.limiter._tend(False, False)
        assert (await opened.post()).status_code == 200

    at_door(registry, visit, Limits(concurrent=1))


def test_lines_of_batches_have_the_same_limits_beside_those_of_requests(
    registry: Registry,
) -> None:
    async def visit(opened: Door, _: App) -> None:
        async def line() -> int:
            record = Record(
                "r", PATH, project="team", caller=opened.key.id, priority=PRIORITY_BATCH
            )
            return (await ask(opened.edge, PATH, b'{"prompt": "x"}', record)).status

        assert [await line() for _ in range(3)] == [200, 200, 429]
        assert [(await opened.post()).status_code for _ in range(3)] == [200, 200, 429]

    at_door(registry, visit, Limits(requests_per_minute=2, concurrent=2))


def test_a_line_that_left_before_its_answer_is_no_request(registry: Registry) -> None:
    async def visit(opened: Door, app: App) -> None:
        def line() -> "asyncio.Task[Any]":
            record = Record(
                "r", PATH, project="team", caller=opened.key.id, priority=PRIORITY_BATCH
            )
            return asyncio.create_task(ask(opened.edge, PATH, b'{"prompt": "x"}', record))

        app.gate.clear()
        displaced = line()
        await app.until_running(1)
        displaced.cancel()
        app.gate.set()
        await asyncio.gather(displaced, return_exceptions=True)
        await opened.settled()
        assert (await line()).status == 200

    at_door(registry, visit, Limits(requests_per_minute=1))


# a server, asked by OpenAI's client


def client_of(served: Desk, limits: Limits, project: str = "ours") -> tuple[openai.OpenAI, str]:
    key, secret = Keys(served.registry.database).create(project, limits=limits)
    served.authenticator.refresh()
    served.limiter.refresh()
    url = f"{served.url}/v1"
    return openai.OpenAI(base_url=url, api_key=secret, max_retries=0), key.id


def test_openais_client_is_told_what_is_left_and_when_to_try_again(served: Desk) -> None:
    client, key = client_of(served, Limits(requests_per_minute=3))
    listed = client.files.with_raw_response.list
    remaining = [listed().headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert remaining == ["2", "1", "0"]
    with pytest.raises(openai.RateLimitError) as caught:
        client.files.list()
    error, headers = caught.value, caught.value.response.headers
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert f"key {key} may have 3 requests in a minute" in error.message
    assert "modiste keys limit" in error.response.json()["error"]["hint"]
    assert 55 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] in {"58s", "59s", "1m0s", "1m1s"}


def test_limits_that_are_changed_take_effect_on_a_running_server(served: Desk) -> None:
    client, key = client_of(served, Limits(requests_per_minute=1))
    client.files.list()
    with pytest.raises(openai.RateLimitError):
        client.files.list()
    Keys(served.registry.database).limit(key, {"requests_per_minute": 0})
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            client.files.list()
            return
        except openai.RateLimitError:
            time.sleep(0.1)
    raise AssertionError("the limit is still there")


def test_a_projects_keys_share_its_limit(served: Desk) -> None:
    (one, _), (two, _) = (client_of(served, NO_LIMITS, "shared") for _ in range(2))
    Projects(served.registry.database).limit("shared", {"requests_per_minute": 2})
    served.limiter.refresh()
    one.files.list()
    two.files.list()
    for client in (one, two):
        with pytest.raises(openai.RateLimitError, match="project shared"):
            client.files.list()


def test_a_batch_waits_for_its_callers_limits_and_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.batches.asking.LIMITED_S", 0.1)
    stand_in = StandIn(tmp_path / "asked")
    with desk(tmp_path / "home", stand_in=stand_in) as served:
        client, key = client_of(served, Limits(requests_per_minute=9, tokens_per_minute=10**6))
        id_ = create(client, b"".join(line(f"id-{n}", f"say {n}") for n in range(30))).id
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(stand_in.asked()) < 9:
            time.sleep(0.05)
        time.sleep(0.3)
        assert len(stand_in.asked()) == 9
        Keys(served.registry.database).limit(key, {"requests_per_minute": 0})
        served.limiter.refresh()
        batch = until(client, id_)
    assert batch.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
