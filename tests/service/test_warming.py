"""A server is ready once its engine has answered; no caller pays for what is done once."""

import asyncio
from typing import Any

import pytest

from service import warming as module
from service.ending import Ending
from service.warming import Warming


class Engine:
    """Fails so many times before it gives a token; never, where it hangs."""

    def __init__(self, failures: int = 0, *, hangs: bool = False) -> None:
        self._failures, self._hangs = failures, hangs
        self.asked = 0

    async def probe(self, *_: Any, **__: Any) -> list[float]:
        self.asked += 1
        if self._hangs:
            await asyncio.sleep(60)
        if self.asked <= self._failures:
            raise RuntimeError("not yet")
        return [0.0]


def warmed(engine: Engine, *, template: bool = True, s: float = 1.0) -> tuple[bool, int]:
    """Whether the server was ready in time, and how many chats were asked by then."""
    chats = 0

    async def chat() -> None:
        nonlocal chats
        assert engine.asked > 0
        chats += 1
        if not template:
            raise ValueError("no chat template")

    async def main() -> bool:
        warming = Warming(engine, chat, Ending())
        work = asyncio.create_task(warming.run())
        await asyncio.wait({work}, timeout=s)
        work.cancel()
        return warming.ready

    return asyncio.run(main()), chats


def test_ready_comes_after_a_token_and_a_chat() -> None:
    assert warmed(Engine()) == (True, 1)


def test_an_engine_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    engine = Engine(failures=3)
    assert warmed(engine) == (True, 1)
    assert engine.asked == 4


def test_an_engine_that_never_answers_is_never_ready() -> None:
    assert warmed(Engine(hangs=True), s=0.1) == (False, 0)


def test_a_base_that_takes_no_chats_is_ready_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    assert warmed(Engine(), template=False) == (True, 1)
    assert "a first chat was not answered: no chat template" in caplog.text


def test_a_server_that_ends_meanwhile_asks_no_more() -> None:
    engine = Engine(failures=10**6)

    async def main() -> None:
        ending = Ending()
        ending.begin()
        await Warming(engine, lambda: asyncio.sleep(0), ending).run()

    asyncio.run(main())
    assert engine.asked == 0
