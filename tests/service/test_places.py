"""Places for versions in the engine: who makes room, who waits, who is drained."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import BadRequest, NotReady
from service.record import current_record
from tests.service.workbench import Bench, run


def test_the_least_recently_used_idle_version_makes_room(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)

    async def work() -> None:
        for reference in ("x@1", "x@2", "x@1", "x@3"):
            await bench.ask(reference)
            record = current_record()
            assert record is not None
            record.finish()

    run(work)
    assert bench.engine.unloaded == [bench.digest("x@2")]
    assert set(bench.names.lora_requests) == {bench.digest("x@1"), bench.digest("x@3")}


def test_versions_in_use_or_live_are_never_unloaded(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)
    bench.registry.promote("x@1")

    async def work() -> None:
        await bench.models.catch_up()
        await bench.ask("x@2")  # goes on
        with pytest.raises(NotReady):
            await bench.ask("x@3")

    run(work)
    assert bench.engine.unloaded == []


def test_a_request_waits_for_a_place_that_becomes_free(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)
    bench.residency._limits = replace(bench.residency._limits, room_wait_s=5)
    given: list[str] = []

    async def request(reference: str, got: asyncio.Event, until: asyncio.Event) -> None:
        await bench.ask(reference)
        given.append(reference)
        got.set()
        await until.wait()
        record = current_record()
        assert record is not None
        record.finish()

    async def work() -> None:
        first_ends, others_end = asyncio.Event(), asyncio.Event()
        got = [asyncio.Event() for _ in range(3)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(request("x@1", got[0], first_ends))
            tasks.create_task(request("x@2", got[1], others_end))
            await asyncio.gather(got[0].wait(), got[1].wait())
            tasks.create_task(request("x@3", got[2], others_end))
            await asyncio.sleep(0.1)
            assert not got[2].is_set()
            first_ends.set()
            await got[2].wait()
            others_end.set()

    run(work)
    assert given[2:] == ["x@3"]
    assert bench.engine.unloaded == [bench.digest("x@1")]


def test_a_place_is_taken_until_the_engine_let_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (1, 2, 3, 4):
        bench.publish(value)
    inside: set[str] = set()
    most = 0

    async def load(name: str, *_: object) -> str:
        nonlocal most
        inside.add(name)
        most = max(most, len(inside))
        return name

    async def unload(name: str) -> bool:
        await asyncio.sleep(0.01)
        inside.discard(name)
        return True

    monkeypatch.setattr(bench.engine, "load", load)
    monkeypatch.setattr(bench.engine, "unload", unload)

    async def work() -> None:
        versions = [bench.registry.find(f"x@{number}") for number in (1, 2, 3, 4)]
        for first, second in ((0, 1), (2, 3), (0, 2)):
            await asyncio.gather(*(bench.residency.ensure(versions[i]) for i in (first, second)))

    run(work)
    assert most == 2


def test_a_cancelled_request_lets_go_of_its_version(bench: Bench) -> None:
    bench.publish(1)

    async def request() -> None:
        try:
            await bench.ask("x@1")
            await asyncio.sleep(60)
        finally:
            record = current_record()
            assert record is not None
            record.finish()

    async def work() -> tuple[int, int]:
        task = asyncio.create_task(request())
        while not bench.residency.residents() or not bench.residency.running():  # noqa: ASYNC110 - what is waited for is a count
            await asyncio.sleep(0.001)
        [resident] = bench.residency.residents()
        held = resident.in_flight
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return held, resident.in_flight

    assert run(work) == (1, 0)


def test_many_versions_in_few_places_are_never_taken_from_their_requests(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_resident=2)
    for value in range(1, 6):
        bench.publish(value)
    bench.engine.load_s = 0.001
    dice = random.Random(3)

    async def request(reference: str) -> str:
        try:
            found = await bench.ask(reference)
        except NotReady:
            return "no room"
        await asyncio.sleep(dice.uniform(0, 0.003))
        assert found.engine_name in bench.names.lora_requests
        record = current_record()
        assert record is not None
        record.finish()
        assert found.reference == reference
        return "answered"

    async def work() -> list[str]:
        asked = [f"x@{dice.randint(1, 5)}" for _ in range(150)]
        tasks = []
        for reference in asked:
            tasks.append(asyncio.create_task(request(reference)))
            await asyncio.sleep(0.001)
        return await asyncio.gather(*tasks)

    answers = run(work)
    assert answers.count("answered") > 50
    assert len(bench.residency.residents()) <= 2
    assert {r.in_flight for r in bench.residency.residents()} == {0}
    assert set(bench.names.lora_requests) == {r.version.digest for r in bench.residency.residents()}


def test_a_version_is_drained_before_it_is_unloaded_and_comes_back_on_demand(bench: Bench) -> None:
    bench.publish(1)

    async def work() -> list[str]:
        events: list[str] = []
        version = bench.registry.find("x@1")
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            await bench.ask("x@1")
            inside.set()
            await go_on.wait()
            events.append("first ends")
            record = current_record()
            assert record is not None
            record.finish()

        async def drain() -> None:
            assert await bench.residency.drain(version)
            events.append("unloaded")

        async def later() -> None:
            await bench.ask("x@1")
            events.append("later answers")

        tasks = [asyncio.create_task(first())]
        await inside.wait()
        tasks += [asyncio.create_task(drain())]
        await asyncio.sleep(0.005)
        tasks += [asyncio.create_task(later())]
        await asyncio.sleep(0.005)
        assert bench.engine.unloaded == []
        go_on.set()
        await asyncio.gather(*tasks)
        return events

    assert run(work) == ["first ends", "unloaded", "later answers"]
    assert bench.engine.loads == [bench.digest("x@1")] * 2


def test_a_drain_that_takes_too_long_leaves_the_version_where_it_is(bench: Bench) -> None:
    bench.publish(1)

    async def work() -> str:
        await bench.ask("x@1")
        with pytest.raises(NotReady, match="still in use"):
            await bench.residency.drain(bench.registry.find("x@1"))
        return (await bench.ask("x@1")).reference

    assert run(work) == "x@1"
    assert bench.engine.unloaded == []


def test_a_live_version_is_not_unloaded_and_a_cold_one_needs_not_be(bench: Bench) -> None:
    for value in (1, 2):
        bench.publish(value)
    bench.registry.promote("x@1")

    async def work() -> bool:
        await bench.models.catch_up()
        with pytest.raises(BadRequest, match="an alias points at x@1"):
            await bench.residency.drain(bench.registry.find("x@1"))
        return await bench.residency.drain(bench.registry.find("x@2"))

    assert run(work) is False
