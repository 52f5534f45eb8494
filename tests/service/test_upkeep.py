"""Upkeep: again and again, whatever fails."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from adapters.errors import StoreFailed
from service import upkeep


def test_a_work_that_fails_keeps_no_other_from_being_done_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "FIRST_S", 0)
    monkeypatch.setattr(upkeep, "EVERY_S", 0.001)
    done: list[str] = []

    def away() -> None:
        done.append("away")
        raise StoreFailed("the store is away")

    def bug() -> None:
        done.append("bug")
        raise ValueError("a bug")

    async def run() -> None:
        async def in_thread(work: Callable[[], Any]) -> None:
            await asyncio.to_thread(work)

        works = (away, bug, lambda: done.append("last"))
        task = asyncio.create_task(upkeep.keep_up(in_thread, *works))
        while done.count("last") < 3:  # noqa: ASYNC110 - it is done in a thread
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    assert done[:6] == ["away", "bug", "last"] * 2
    assert "the store is away" in caplog.text
    assert "a bug" in caplog.text
