"""Few lines while somebody waits, all places when nobody does; projects and adapters share."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.batches import gate as module
from service.batches.gate import Gate, Turn, Want
from service.batches.runner import gate_places
from service.record import PRIORITY_BATCH, Record
from service.traffic import Traffic

OURS = Want("ours")


class Lines:
    """Lines at a gate that run until they are told to end.

    Attributes:
        began: names in the order in which they got a place, once more after a displacement.
        running: names of those in the engine.
        slow: names of those that never get there.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.began: list[str] = []
        self.running = Counter[str]()
        self.places: dict[str, int] = {}
        self.slow = ""
        self.tasks: dict[str, asyncio.Task[str]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    def add(self, names: str, want: Want = OURS) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(
                self.gate.run(want, lambda turn, name=name: self._work(name, turn))  # type: ignore[misc]
            )

    async def _work(self, name: str, turn: Turn) -> str:
        self.began.append(name)
        self.places[name] = turn.places
        self.running[name] += 1
        if name not in self.slow:
            turn.entered()
        try:
            await self._ends[name].wait()
        finally:
            self.running -= Counter([name])
        return name

    async def end(self, names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()

    @property
    def now(self) -> str:
        return "".join(sorted(self.running))


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def at_gate(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


@asynccontextmanager
async def lines(
    alone: int, beside: int = 1, slots: int = 4, traffic: Traffic | None = None
) -> AsyncIterator[Lines]:
    found = Lines(Gate(traffic or Traffic(), alone, beside, slots, "base"))
    yield found
    for task in found.tasks.values():
        task.cancel()
    await asyncio.gather(*found.tasks.values(), return_exceptions=True)
    assert found.gate.running == 0


WAITED_FOR = Record("r", "/v1/generate")


def test_lines_come_in_turn() -> None:
    async def go() -> None:
        async with lines(2) as found:
            found.add("abcde")
            await settle()
            assert found.began == ["a", "b"]
            await found.end("a")
            assert await found.tasks["a"] == "a"
            assert found.now == "bc"
            found.tasks["d"].cancel()  # it waits
            found.tasks["b"].cancel()  # it runs
            await settle()
            assert found.now == "ce"

    at_gate(go())


def test_few_lines_beside_others_and_all_once_it_is_quiet() -> None:
    async def go() -> None:
        traffic = Traffic()
        async with lines(4, 1, traffic=traffic) as found:
            following = asyncio.create_task(found.gate.follow())
            traffic.enter(Record("b", "/v1/generate", priority=PRIORITY_BATCH))
            assert found.gate.places == 4
            traffic.enter(WAITED_FOR)
            assert found.gate.places == 1
            found.add("abcdef")
            await settle()
            assert found.now == "a"
            traffic.leave(WAITED_FOR)
            traffic._last = float("-inf")  # long ago
            for _ in range(500):
                await asyncio.sleep(0.01)
                if found.now == "abcd":
                    break
            assert found.now == "abcd"
            following.cancel()

    at_gate(go())


def test_beside_others_lines_set_out_one_by_one() -> None:
    async def go() -> None:
        traffic = Traffic()
        async with lines(8, 6, traffic=traffic) as found:
            found.slow = "abx"
            traffic.enter(WAITED_FOR)
            found.add("abcdef")
            await settle()
            assert found.began == ["a"]  # the others wait until it is in the engine
            await found.end("a")  # or was refused on the way
            assert found.began == ["a", "b"]
            found.tasks["b"].cancel()
            await settle()
            assert found.now == "cdef"
            traffic.leave(WAITED_FOR)
            traffic._last = float("-inf")  # long ago
            found.add("xyz")
            await settle()
            assert found.now == "cdefxyz"

    at_gate(go())


def test_it_is_not_quiet_right_after(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("service.traffic.monotonic", lambda: now)
    traffic = Traffic()
    gate = Gate(traffic, 4, 1)
    traffic.enter(WAITED_FOR)
    traffic.leave(WAITED_FOR)
    now += module.QUIET_S
    assert gate.places == 1
    now += 0.1
    assert gate.places == 4


def test_whoever_comes_gets_the_places_of_the_newest_lines() -> None:
    async def go() -> None:
        traffic = Traffic()
        async with lines(4, 2, traffic=traffic) as found:
            found.add("abcdef")
            await settle()
            assert found.now == "abcd"
            traffic.enter(WAITED_FOR)
            await settle()
            assert found.now == "ab"
            traffic.enter(WAITED_FOR)  # the second changes nothing
            await settle()
            assert found.now == "ab"
            await found.end("ab")
            assert found.now == "cd"  # again, before those that never began
            assert found.began == list("abcdcd")
            await found.end("cd")
            assert [await found.tasks[name] for name in "abcd"] == list("abcd")

    at_gate(go())


def test_a_line_that_is_done_as_somebody_comes_is_not_asked_again() -> None:
    async def go() -> None:
        traffic = Traffic()
        async with lines(2, 1, traffic=traffic) as found:
            found.add("ab")
            await settle()
            found._ends["b"].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            traffic.enter(WAITED_FOR)
            await settle()
            assert await found.tasks["b"] == "b"
            assert found.began == ["a", "b"]

    at_gate(go())


def test_sequences_count_and_a_line_of_many_runs_alone() -> None:
    async def go() -> None:
        async with lines(4) as found:
            found.add("a", Want("ours", weight=3))
            found.add("b", Want("ours", weight=300))
            found.add("c", Want("ours", weight=1))
            await settle()
            assert found.now == "a"  # the small one doesn't pass the large one
            await found.end("a")
            assert (found.now, found.gate.running, found.places["b"]) == ("b", 4, 4)
            await found.end("b")
            assert (found.now, found.gate.running) == ("c", 1)

    at_gate(go())


def test_a_line_of_many_goes_on_with_fewer_as_somebody_comes() -> None:
    async def go() -> None:
        traffic = Traffic()
        async with lines(8, 2, traffic=traffic) as found:
            found.add("a", Want("ours", weight=300))
            await settle()
            assert found.places["a"] == 8
            traffic.enter(WAITED_FOR)
            await settle()
            assert (found.began, found.places["a"]) == (["a", "a"], 2)
            traffic.enter(WAITED_FOR)
            await settle()
            assert found.began == ["a", "a"]

    at_gate(go())


def test_projects_share_the_places() -> None:
    async def go() -> None:
        async with lines(4) as found:
            found.add("abcdefgh", Want("ours"))
            await settle()
            found.add("stuvw", Want("theirs"))
            await settle()
            assert found.now == "abcd"
            await found.end("abcd")
            assert found.now == "efst"  # two of each

    at_gate(go())


def test_one_slot_for_adapters_is_left_to_others() -> None:
    async def go() -> None:
        async with lines(9, slots=3) as found:
            for name in "abc":
                found.add(name, Want("ours", name))
            found.add("x", Want("ours", "base"))
            found.add("y", Want("ours", "a"))
            await settle()
            assert found.now == "abxy"
            await found.end("a")
            assert found.now == "bxy"
            await found.end("y")
            assert found.now == "bcx"

    at_gate(go())


def test_a_line_for_an_adapter_is_asked_where_none_is_served() -> None:
    async def go() -> None:
        async with lines(4, slots=0) as found:
            found.add("a", Want("ours", "unknown"))
            await settle()
            assert found.now == "a"

    at_gate(go())


def test_who_waits_for_a_slot_gets_that_of_the_newest_adapter() -> None:
    async def go() -> None:
        traffic = Traffic()
        async with lines(9, 9, slots=2, traffic=traffic) as found:
            found.gate.learn("mine", "digest-m")
            found.add("a", Want("ours", "a"))
            found.add("x", Want("ours", "base"))
            await settle()
            traffic.enter(WAITED_FOR, "digest-m")
            await settle()
            assert found.now == "ax"  # both have a slot
            found.add("m", Want("ours", "mine"))
            await settle()
            assert found.now == "amx"
            traffic.enter(WAITED_FOR, "digest-n")
            await settle()
            assert found.now == "mx"
            found.add("b", Want("ours", "a"))
            await settle()
            assert found.now == "mx"
            traffic.leave(WAITED_FOR, "digest-n")
            found.add("y", Want("ours", "base"))
            await settle()
            assert found.now == "mxy"  # batches have one slot, and one is left free
            await found.end("m")
            assert found.now == "abxy"

    at_gate(go())


def test_an_adapter_is_not_passed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with lines(2, slots=1) as found:
            found.add("ab", Want("ours", "a"))
            found.add("s", Want("theirs", "s"))
            found.add("cd", Want("ours", "a"))
            await settle()
            await found.end("a")
            assert found.now == "bc"
            monkeypatch.setattr(module, "TURN_S", -1.0)
            await found.end("b")
            assert found.now == "c"
            await found.end("c")
            assert found.now == "s"

    at_gate(go())


def test_a_line_that_is_admitted_and_cancelled_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def go() -> None:
        async with lines(1) as found:
            found.add("abc")
            await settle()
            leave = found.gate._leave

            def leaves(line: module._Line) -> None:
                monkeypatch.setattr(found.gate, "_leave", leave)
                leave(line)  # the second is admitted
                found.tasks["b"].cancel()  # before it could run

            monkeypatch.setattr(found.gate, "_leave", leaves)
            await found.end("a")
            assert (found.now, found.began) == ("c", ["a", "c"])

    at_gate(go())


@pytest.mark.parametrize(("sequences", "expected"), [(1, (1, 1)), (8, (7, 1)), (128, (112, 28))])
def test_some_sequences_stay_free(sequences: int, expected: tuple[int, int]) -> None:
    assert gate_places(sequences) == expected
