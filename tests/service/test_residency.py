"""Loading, proof and room in an engine whose faults can be chosen."""

import asyncio
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters import leases
from adapters.errors import (
    DigestMismatch,
    IncompatibleAdapter,
    ProofFailed,
    Quarantined,
    StoreFailed,
)
from adapters.registry import Version
from service import leasing
from service.demand import Demand
from service.errors import BadRequest, NotReady
from service.inspector import Inspection
from service.models import Resolved
from service.record import current_record
from service.residency import Residency, Resident
from service.telemetry import Metrics
from tests.adapters.parcels import BASE
from tests.service.workbench import Bench, run


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_many_who_ask_for_a_cold_version_wait_for_one_load(bench: Bench) -> None:
    bench.publish(1)
    bench.engine.load_s = 0.05

    async def work() -> list[Resolved]:
        return await asyncio.gather(*(bench.ask("x@1") for _ in range(20)))

    answers = run(work)
    assert {answer.proof for answer in answers} == {"proved"}
    assert bench.engine.loads == [bench.digest("x@1")]


def test_a_waiter_that_goes_away_does_not_stop_the_load(bench: Bench) -> None:
    bench.publish(1)
    bench.engine.load_s = 0.05

    async def work() -> Resolved:
        first = asyncio.create_task(bench.ask("x@1"))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(bench.ask("x@1"))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert run(work).reference == "x@1"
    assert len(bench.engine.loads) == 1


def test_a_version_that_fails_its_proof_is_unloaded_and_quarantined(bench: Bench) -> None:
    bench.publish(1)
    digest = bench.digest("x@1")
    bench.engine.dishonest.add(digest)

    with pytest.raises(ProofFailed):
        run(lambda: bench.ask("x@1"))
    assert bench.engine.unloaded == [digest]
    assert bench.names.lora_requests == {}
    assert bench.registry.find("x@1").state == "quarantined"
    with pytest.raises(Quarantined):
        run(lambda: bench.ask(f"x@{digest}"))


def test_a_store_that_is_away_quarantines_nothing(bench: Bench) -> None:
    bench.publish(1)
    bench.engine.failing[bench.digest("x@1")] = StoreFailed("gone")

    with pytest.raises(StoreFailed):
        run(lambda: bench.ask("x@1"))
    assert bench.registry.find("x@1").state == "ready"
    bench.engine.failing.clear()
    assert run(lambda: bench.ask("x@1")).reference == "x@1"


@pytest.mark.parametrize("config", [{"target_modules": ["q_proj", "other"]}])
def test_what_this_server_does_not_take_is_refused_but_sound(
    bench: Bench, config: dict[str, Any]
) -> None:
    bench.publish(1, config=config)

    with pytest.raises(IncompatibleAdapter):
        run(lambda: bench.ask("x@1"))
    assert bench.registry.find("x@1").state == "ready"
    assert bench.engine.loads == []


def test_a_server_says_what_it_takes_for_as_long_as_it_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (leases, leasing):
        monkeypatch.setattr(module, "LEASE_S", 0.3)
    wide = bench.publish(1, config={"rank_pattern": {"nothing": 16}})

    async def work() -> list[str]:
        keeping = asyncio.create_task(bench.residency.leasing.keep(bench.residency.digests))
        await asyncio.sleep(0.05)  # at once, not only when leases are renewed
        first = bench.registry.misfits(bench.registry.find(wide))
        await asyncio.sleep(0.5)  # longer than it holds without renewal
        second = bench.registry.misfits(bench.registry.find(wide))
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
        return [*first, *second]

    told = run(work)
    assert len(told) == 2
    assert "it has rank 16, the server takes 8" in told[1]
    assert f"process {os.getpid()}" in told[1]
    assert bench.registry.misfits(bench.registry.find(wide)) == []


def test_a_database_that_is_away_for_a_while_does_not_end_the_renewal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (leases, leasing):
        monkeypatch.setattr(module, "LEASE_S", 0.3)
    wide = bench.publish(1, config={"rank_pattern": {"nothing": 16}})
    announce, failures = bench.registry.announce, iter([True])

    def fails_once(*arguments: Any) -> None:
        if next(failures, False):
            raise StoreFailed("locked")
        announce(*arguments)

    monkeypatch.setattr(bench.registry, "announce", fails_once)

    async def work() -> list[str]:
        keeping = asyncio.create_task(bench.residency.leasing.keep(bench.residency.digests))
        await asyncio.sleep(0.3)
        told = bench.registry.misfits(bench.registry.find(wide))
        keeping.cancel()
        await asyncio.wait([keeping])
        return told

    assert len(run(work)) == 1


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


def test_a_version_that_comes_back_is_loaded_but_not_proved_again(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)

    async def work() -> None:
        for number in (1, 2, 3, 1):
            await bench.residency.ensure(bench.registry.find(f"x@{number}"))

    run(work)
    first = bench.digest("x@1")
    assert bench.engine.loads.count(first) == 2
    assert bench.engine.probed.count(first) == 1


def test_what_was_altered_since_its_proof_is_found_when_it_comes_back(bench: Bench) -> None:
    for value in (1, 2, 3):
        bench.publish(value)

    async def work() -> None:
        for number in (1, 2, 3):
            await bench.residency.ensure(bench.registry.find(f"x@{number}"))
        weights = bench.registry.find("x@1").folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(DigestMismatch):
            await bench.residency.ensure(bench.registry.find("x@1"))

    run(work)
    assert bench.registry.find("x@1").state == "quarantined"


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


def test_a_version_that_needs_a_higher_rank_is_refused_with_the_remedy(bench: Bench) -> None:
    bench.publish(1)
    takes = bench.residency.leasing.takes
    bench.residency.leasing.takes = takes.model_copy(update={"max_rank": 2})

    with pytest.raises(IncompatibleAdapter, match="max_lora_rank 8"):
        run(lambda: bench.ask("x@1"))


def test_a_version_for_another_base_is_refused_and_names_the_difference(bench: Bench) -> None:
    other = BASE.model_copy(update={"tokenizer": "sha256:" + "1" * 64})
    bench.residency._limits = replace(bench.residency._limits, base=other)
    bench.publish(1)

    with pytest.raises(IncompatibleAdapter, match="tokenizer"):
        run(lambda: bench.ask("x@1"))
    assert bench.registry.find("x@1").state == "ready"


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


def test_a_version_that_left_before_its_waiter_ran_is_loaded_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(1)
    ensure = Residency.ensure

    async def ensure_then_lose(residency: Residency, version: Version) -> Resident:
        resident = await ensure(residency, version)
        if len(bench.engine.loads) == 1:  # another load takes the place just now
            await residency._unload(resident)
        return resident

    monkeypatch.setattr(Residency, "ensure", ensure_then_lose)

    answer = run(lambda: bench.ask("x@1"))
    assert answer.engine_name in bench.names.lora_requests
    assert [resident.in_flight for resident in bench.residency.residents()] == [1]
    assert len(bench.engine.loads) == 2


def test_tensors_that_the_engine_did_not_take_fail_the_proof(bench: Bench) -> None:
    cases = {
        "belong to no module": Inspection(tensors=2, unknown=["a.lora_A.weight"], largest_b=1.0),
        "slot differs from the file in b": Inspection(2, differing=["b"], largest_b=1.0),
        "slot differs from the file in c": Inspection(2, leftover=["c"], largest_b=1.0),
        "every lora_B is zero": Inspection(2),
    }
    for value, (reason, inspection) in enumerate(cases.items(), start=1):
        reference = bench.publish(value)
        bench.engine.inspections[bench.digest(reference)] = inspection

        async def work(asked: str = reference) -> None:
            await bench.ask(asked)

        with pytest.raises(ProofFailed, match=reason):
            run(work)
        found = bench.registry.find(reference)
        assert (found.state, reason in found.reason) == ("quarantined", True)
        assert bench.engine.unloaded[-1] == found.digest


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


class TestAStoreElsewhere:
    @pytest.fixture
    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
        """A bench whose versions lie in another folder than its home."""
        (tmp_path / "far").mkdir()
        monkeypatch.setenv("MODISTE_STORE_URL", f"file://{tmp_path}/far")
        bench = Bench(tmp_path)
        bench.publish(1)
        return bench

    def weights(self, bench: Bench) -> Path:
        folder = bench.registry.find("x@1").folder
        return folder / "adapter_model.safetensors"

    def far(self, bench: Bench) -> Path:
        [path] = (bench.work / "far" / "x").glob("*/adapter_model.safetensors")
        return path

    def test_a_version_is_fetched_before_the_engine_reads_it(self, bench: Bench) -> None:
        shutil.rmtree(bench.registry.store.root)

        assert run(lambda: bench.ask("x@1")).proof == "proved"
        assert self.weights(bench).read_bytes() == self.far(bench).read_bytes()

    def test_damage_in_the_cache_quarantines_nothing(self, bench: Bench) -> None:
        self.weights(bench).write_bytes(b"damaged")

        assert run(lambda: bench.ask("x@1")).proof == "proved"

    def test_damage_in_the_store_quarantines(self, bench: Bench) -> None:
        self.weights(bench).unlink()
        self.far(bench).write_bytes(b"damaged")

        with pytest.raises(DigestMismatch):
            run(lambda: bench.ask("x@1"))
        assert bench.registry.find("x@1").state == "quarantined"

    def test_a_store_that_is_away_quarantines_nothing(self, bench: Bench) -> None:
        self.weights(bench).unlink()
        (bench.work / "far").rename(bench.work / "unmounted")
        with pytest.raises(StoreFailed):
            run(lambda: bench.ask("x@1"))
        (bench.work / "unmounted").rename(bench.work / "far")

        assert run(lambda: bench.ask("x@1")).proof == "proved"

    def test_slow_fetches_take_no_threads_from_requests(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrive = threading.Event()
        fetch = bench.registry.fetch

        def slow(version: Version) -> None:
            loops[0].call_soon_threadsafe(begun.set)
            arrive.wait(10)
            fetch(version)

        monkeypatch.setattr(bench.registry, "fetch", slow)
        loops: list[asyncio.AbstractEventLoop] = []
        begun = asyncio.Event()

        async def work() -> str:
            loops.append(asyncio.get_running_loop())
            loops[0].set_default_executor(ThreadPoolExecutor(1))
            asking = asyncio.create_task(bench.ask("x@1"))
            await begun.wait()
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 2)
            arrive.set()
            return (await asking).proof

        assert run(work) == "proved"
