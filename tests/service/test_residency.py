"""Loading and proof in an engine whose faults can be chosen."""

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest

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
from service.inspector import Inspection
from service.models import Resolved
from service.residency import Residency, Resident
from tests.adapters.parcels import BASE
from tests.service.workbench import Bench, run


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
