"""Work for a caller who goes away."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service.callers import WhileThere, with_cancellation
from service.event_stream import SEND, EventStream


class Caller:
    """Goes away when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_work_ends_quietly_with_its_caller() -> None:
    async def run() -> None:
        caller, ended = Caller(), list[str]()

        @with_cancellation
        async def work(raw_request: Any) -> str:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(str(raw_request.name))
            return "done"

        asyncio.get_running_loop().call_later(0.01, caller.gone.set)
        request = SimpleNamespace(receive=caller.receive, name="a")
        assert await asyncio.wait_for(work(raw_request=request), 5) is None
        assert ended == ["a"]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # it can still wait

    asyncio.run(run())


def test_work_that_is_done_is_answered_though_its_caller_goes() -> None:
    async def run() -> None:
        caller = Caller()
        async with WhileThere(caller.receive):
            await asyncio.sleep(0)
        caller.gone.set()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_another_cancellation_goes_through() -> None:
    async def run() -> None:
        caller = Caller()

        async def work() -> None:
            async with WhileThere(caller.receive):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

        both = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        both.cancel()
        caller.gone.set()
        await asyncio.wait([both])
        assert both.cancelled()

    asyncio.run(run())


def test_what_fails_is_raised() -> None:
    async def run() -> None:
        async with WhileThere(Caller().receive):
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        asyncio.run(run())


def test_a_stream_begins_with_its_first_event_and_ends_with_its_caller() -> None:
    async def run() -> None:
        caller, closed, sent = Caller(), list[str](), list[Any]()
        beneath = list[Any]()

        async def events() -> Any:
            try:
                assert not sent
                yield "data: 1\n\n"
                await asyncio.sleep(60)
            finally:
                closed.append("closed")

        async def send(message: Any) -> None:
            sent.append(message)

        async def straight(message: Any) -> None:
            beneath.append(message)
            caller.gone.set()

        stream = EventStream(events(), {"cache-control": "no-cache"})
        await asyncio.wait_for(stream({"type": "http", SEND: straight}, caller.receive, send), 5)
        assert [message["type"] for message in sent] == ["http.response.start"]
        assert (b"cache-control", b"no-cache") in sent[0]["headers"]
        assert [message["body"] for message in beneath] == [b"data: 1\n\n"]
        assert closed == ["closed"]

    asyncio.run(run())


def test_a_stream_without_events_is_whole() -> None:
    async def run() -> list[Any]:
        sent = list[Any]()

        async def events() -> Any:
            return
            yield

        async def send(message: Any) -> None:
            sent.append(message)

        await EventStream(events())({"type": "http"}, Caller().receive, send)
        return sent

    start, end = asyncio.run(run())
    assert (start["status"], end["more_body"]) == (200, False)
