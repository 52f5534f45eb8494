"""A loop that is held up is noticed, with what held it up; one that isn't shows next to nothing."""

import asyncio
import logging
import sys
import time
from pathlib import Path

import pytest

from service.loop_watch import LoopWatch, place_of


async def watched(seconds: float, hold_s: float = 0.0) -> list[float]:
    """Lateness of the beats, while something holds the loop up once."""
    held: list[float] = []
    watch = asyncio.create_task(LoopWatch(held.append, every_s=0.02, tell_s=0.2).run())
    await asyncio.sleep(seconds / 2)
    time.sleep(hold_s)  # noqa: ASYNC251 - what must not be done, and is to be found
    await asyncio.sleep(seconds / 2)
    watch.cancel()
    return held


def test_a_loop_that_is_free_is_hardly_late(caplog: pytest.LogCaptureFixture) -> None:
    held = asyncio.run(watched(0.6))

    assert len(held) >= 10
    assert sorted(held)[len(held) // 2] < 0.01
    assert caplog.text == ""


def test_what_holds_the_loop_up_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "modiste.loop"):
        held = asyncio.run(watched(0.3, hold_s=0.5))

    assert max(held) == pytest.approx(0.5, abs=0.1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "held up for 0." in line
    assert f"watched (tests/service/{Path(__file__).name}:" in line


def test_a_short_hold_is_counted_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    held = asyncio.run(watched(0.3, hold_s=0.1))

    assert max(held) == pytest.approx(0.1, abs=0.05)
    assert caplog.text == ""


def test_the_thread_ends_with_the_watch() -> None:
    import threading

    asyncio.run(watched(0.1))
    deadline = time.monotonic() + 5
    while any(thread.name == "modiste-loop" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_place_is_told_with_what_of_ours_led_there(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "slow.py").write_text("def waits(look):\n    return look()\n")
    spaces: dict[str, object] = {}
    exec(compile((folder / "slow.py").read_text(), str(folder / "slow.py"), "exec"), spaces)
    waits = spaces["waits"]
    assert callable(waits)

    told = waits(lambda: place_of(sys._getframe().f_back))

    assert told == "waits (" + "/".join((*tmp_path.parts[-1:], "service", "slow.py")) + ":2)"
