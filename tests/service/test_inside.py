"""Requests that the server asks itself are answered as any other, and end when cancelled."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request

from service import inside
from service.inside import ask
from service.models import Resolved
from service.record import RECORD, Record
from tests.service.desk import until_caller_goes


class Route:
    """An app whose one route works until it is cancelled, unless it is told to answer."""

    def __init__(self, decorate: Callable[[Any], Any] = until_caller_goes) -> None:
        self.app, self.running, self.began = FastAPI(), 0, asyncio.Event()
        self.record: Record | None = None

        @self.app.post("/v1/generate")
        @decorate
        async def generate(raw_request: Request) -> dict[str, Any]:
            asked = await raw_request.json()
            self.record = raw_request.scope[RECORD]
            self.running += 1
            self.began.set()
            try:
                await asyncio.sleep(3600 if asked["prompt"] == "never" else 0)
                if asked["prompt"] == "broken":
                    raise RuntimeError("a bug")
                return {"text": asked["prompt"]}
            finally:
                self.running -= 1


def record() -> Record:
    return Record("r", "/v1/generate")


def test_an_answer_comes_whole() -> None:
    async def go() -> None:
        route, mine = Route(), record()
        answer = await ask(route.app, "/v1/generate", b'{"prompt": "hi"}', mine)
        assert (answer.status, answer.body) == (200, b'{"text":"hi"}')
        assert answer.headers["content-type"] == "application/json"
        assert route.record is mine
        broken = await ask(route.app, "/v1/generate", b'{"prompt": "broken"}', record())
        assert broken.status == 500
        assert (await ask(route.app, "/v1/none", b"{}", record())).status == 404

    asyncio.run(go())


@pytest.mark.parametrize("decorate", [until_caller_goes, lambda handler: handler])
def test_a_request_that_is_cancelled_frees_the_engine(
    decorate: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "GONE_S", 0.5)

    async def go() -> None:
        route, mine = Route(decorate), record()
        task = asyncio.create_task(ask(route.app, "/v1/generate", b'{"prompt": "never"}', mine))
        await route.began.wait()
        mine.model = Resolved("one@1", "digest", "proved")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert (route.running, mine.model) == (0, None)  # nobody's usage

    asyncio.run(go())
