"""Who is let in once the server ends."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from service.door import Door
from service.ending import Ending
from service.record import RECORD, Record

Talk = Callable[[httpx.AsyncClient, Ending, asyncio.Event], Awaitable[None]]


def with_door(talk: Talk, own: bool = False) -> None:
    """Talk to an app whose `/slow` answers once the event is set."""

    async def main() -> None:
        go = asyncio.Event()

        async def slow(_request: Request) -> PlainTextResponse:
            await go.wait()
            return PlainTextResponse("done")

        async def at_once(_request: Request) -> PlainTextResponse:
            return PlainTextResponse("here")

        routes = [
            Route("/slow", slow), Route("/health/ready", at_once), Route("/v1/models", at_once)
        ]  # fmt: skip
        ending = Ending()
        app: ASGIApp = Door(Starlette(routes=routes), ending)
        door = app

        async def of_the_server(scope, receive, send):  # type: ignore[no-untyped-def]
            await door({**scope, RECORD: Record("r", "/v1/models")}, receive, send)

        transport = httpx.ASGITransport(of_the_server if own else app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await talk(client, ending, go)

    asyncio.run(main())


def test_a_request_that_was_let_in_is_answered_and_the_next_is_refused() -> None:
    async def talk(client: httpx.AsyncClient, ending: Ending, go: asyncio.Event) -> None:
        before = await client.get("/v1/models")
        running = asyncio.create_task(client.get("/slow"))
        await asyncio.sleep(0.01)
        ending.begin()
        refused = await client.get("/v1/models")
        go.set()
        answered = await running

        assert "connection" not in before.headers
        assert (answered.text, answered.headers["connection"]) == ("done", "close")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("5", "close")

    with_door(talk)


def test_the_server_waits_for_those_inside_also_when_one_is_cancelled() -> None:
    async def talk(client: httpx.AsyncClient, ending: Ending, go: asyncio.Event) -> None:
        running = [asyncio.create_task(client.get("/slow")) for _ in range(2)]
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(asyncio.to_thread(ending.drain, 30.0))
        running[0].cancel()
        await asyncio.sleep(0.05)
        assert not draining.done()
        go.set()
        assert await draining > 0

    with_door(talk)


@pytest.mark.parametrize(("path", "own"), [("/health/ready", False), ("/v1/models", True)])
def test_probes_and_the_server_s_own_requests_pass_to_the_end(path: str, own: bool) -> None:
    async def talk(client: httpx.AsyncClient, ending: Ending, go: asyncio.Event) -> None:
        ending.begin()
        assert (await client.get(path)).status_code == 200

    with_door(talk, own)
