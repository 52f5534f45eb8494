"""Few lines while somebody waits, all places when nobody does."""

import asyncio

import pytest

from service.batches import gate as module
from service.batches.gate import Gate
from service.batches.runner import gate_places
from service.record import PRIORITY_BATCH, Record
from service.traffic import Traffic


def run(gate: Gate, count: int, order: list[int]) -> list["asyncio.Task[None]"]:
    async def line(number: int) -> None:
        await gate.enter()
        order.append(number)

    return [asyncio.create_task(line(number)) for number in range(count)]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_lines_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_S", -1.0)

    async def go() -> None:
        gate, order = Gate(Traffic(), 2, 1), []
        tasks = run(gate, 5, order)
        await settle()
        assert (order, gate.running) == ([0, 1], 2)
        gate.leave()
        await settle()
        assert order == [0, 1, 2]
        tasks[3].cancel()
        await settle()
        gate.leave()
        await settle()
        assert (order, gate.running) == ([0, 1, 2, 4], 2)
        gate.leave()
        gate.leave()
        assert gate.running == 0

    asyncio.run(go())


def test_few_lines_beside_others_and_all_once_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    monkeypatch.setattr(module, "_LOOK_S", 0.01)

    async def go() -> None:
        traffic, order = Traffic(), []
        gate, waited_for = Gate(traffic, 4, 1), Record("r", "/v1/generate")
        own = Record("b", "/v1/generate", priority=PRIORITY_BATCH)
        following = asyncio.create_task(gate.follow())
        traffic.enter(own)
        assert gate.places == 4
        traffic.enter(waited_for)
        assert gate.places == 1
        run(gate, 6, order)
        await asyncio.sleep(0.1)
        assert order == [0]
        traffic.leave(waited_for)
        await settle()
        assert order == [0]
        await asyncio.sleep(0.2)
        assert order == [0, 1, 2, 3]
        traffic.enter(waited_for)
        gate.leave()
        await settle()
        assert (order, gate.running) == ([0, 1, 2, 3], 3)
        following.cancel()

    asyncio.run(go())


def test_a_line_that_is_admitted_and_cancelled_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "QUIET_S", -1.0)

    async def go() -> None:
        gate, order = Gate(Traffic(), 1, 1), []
        tasks = run(gate, 3, order)
        await settle()
        gate.leave()  # the second is admitted
        tasks[1].cancel()  # before it could run
        await settle()
        assert (order, gate.running) == ([0, 2], 1)

    asyncio.run(go())


@pytest.mark.parametrize(("sequences", "expected"), [(1, (1, 1)), (8, (7, 1)), (128, (112, 28))])
def test_some_sequences_stay_free(sequences: int, expected: tuple[int, int]) -> None:
    assert gate_places(sequences) == expected
