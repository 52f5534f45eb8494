"""Versions that are loaded ahead, and the leases that say which are wanted."""

import time

import pytest
from prometheus_client import CollectorRegistry

from service.demand import Demand
from service.record import current_record
from service.telemetry import Metrics
from tests.service.workbench import Bench, run


def demand_of(bench: Bench) -> Demand:
    return Demand(bench.registry, bench.residency, Metrics(CollectorRegistry()))


def test_what_other_servers_use_is_loaded_ahead_while_there_are_places(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)
    for number in (1, 3):
        bench.registry.lease("another", bench.registry.find(f"x@{number}"))

    async def work() -> tuple[int, int, list[str]]:
        await bench.ask("x@2")
        first = await demand_of(bench).preload()
        again = await demand_of(bench).preload()
        loaded = sorted(r.version.reference for r in bench.residency.residents())
        return first, again, loaded

    loaded, again, residents = run(work)
    assert (loaded, again) == (1, 0)  # two places, one of them taken
    assert "x@2" in residents
    assert bench.engine.unloaded == []


def test_one_that_fails_is_passed_over_when_loaded_ahead(bench: Bench) -> None:
    for value in (1, 2):
        bench.publish(value)
        bench.registry.lease("another", bench.registry.find(f"x@{value}"))
    bench.engine.dishonest.add(bench.digest("x@1"))

    async def work() -> list[str]:
        await demand_of(bench).preload()
        return [r.version.reference for r in bench.residency.residents()]

    assert run(work) == ["x@2"]


def test_an_ended_servers_versions_are_wanted_for_an_hour(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(1)
    version = bench.registry.find("x@1")
    bench.registry.lease("before", version)
    now = time.time()
    wanted = []
    for passed_s in (0, 3000, 3700):
        monkeypatch.setattr("adapters.leases.time.time", lambda at=now + passed_s: at)
        wanted.append([v.reference for v in bench.registry.wanted("here")])
    assert wanted == [["x@1"], ["x@1"], []]
    assert bench.registry.wanted("before") == []


def test_what_made_room_keeps_its_lease_for_a_while(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)

    async def work() -> list[str]:
        for number in (1, 2, 3, 1):
            await bench.ask(f"x@{number}")
            record = current_record()
            assert record is not None
            record.finish()
        return sorted(v.reference for v in bench.registry.wanted("somebody"))

    assert run(work) == ["x@1", "x@2", "x@3"]
