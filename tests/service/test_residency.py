"""Loading, proof and aliases with an engine whose faults can be chosen."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.bases import Base
from adapters.errors import IncompatibleAdapter, ProofFailed, Quarantined, StoreFailed
from adapters.registry import Registry
from service.errors import ModelNotFound, NotReady
from service.models import Models, Resolved
from service.record import Record, current_record, set_record
from service.residency import Limits, Residency
from service.telemetry import Metrics
from tests.adapters.parcels import BASE, PROBE, draft, parcel


@dataclass
class FakeEngine:
    """Answers every probe honestly, unless told otherwise."""

    dtype: str = "float32"
    loads: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    dishonest: set[str] = field(default_factory=set)
    failing: dict[str, Exception] = field(default_factory=dict)
    load_s: float = 0.0

    async def load(self, engine_name: str, identifier: int, folder: str) -> Any:
        self.loads.append(engine_name)
        await asyncio.sleep(self.load_s)
        if engine_name in self.failing:
            raise self.failing[engine_name]
        return engine_name

    async def unload(self, request: Any) -> bool:
        self.unloaded.append(request)
        return True

    async def probe(self, prompt_ids: list[int], token_ids: list[int], request: Any) -> list[float]:
        item = PROBE.items[0]
        return item.base_logprobs if request in self.dishonest else item.adapter_logprobs


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int) -> int:
        self.value += by
        return self.value


class Names:
    """vLLM's table of adapters."""

    def __init__(self) -> None:
        self.lora_requests: dict[str, Any] = {}
        self.lora_id_counter = Counter()


class Bench:
    """Everything around one fake engine."""

    def __init__(self, tmp_path: Path, max_resident: int = 2) -> None:
        self.work = tmp_path
        self.registry = Registry.open(tmp_path / "home")
        self.engine, self.names = FakeEngine(), Names()
        limits = Limits(BASE, 8, max_resident, 2, frozenset({"q_proj"}))
        metrics = Metrics(CollectorRegistry())
        self.residency = Residency(self.engine, self.registry, self.names, limits, metrics)
        base = Base(
            name="b", path=tmp_path, source="", ref=BASE, context_length=9, architecture="",
            parameters=1, lora=True,
        )  # fmt: skip
        self.models = Models(self.registry, self.residency, base)

    def publish(self, value: float, name: str = "x", **more: Any) -> str:
        folder = parcel(self.work / f"{name}-{value}", value, **more.pop("config", {}))
        version = self.registry.publish(folder, draft(folder, name, **more))
        return version.reference

    def digest(self, reference: str) -> str:
        return self.registry.find(reference).digest

    async def ask(self, reference: str | None, **more: Any) -> Resolved:
        """Resolve inside a request that goes on."""
        set_record(Record("r", "/v1/generate"))
        return await self.models.resolve(reference, task=more.pop("task", "generate"), **more)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())


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


@pytest.mark.parametrize("config", [{"target_modules": ["other"]}])
def test_what_this_server_does_not_take_is_refused_but_sound(
    bench: Bench, config: dict[str, Any]
) -> None:
    bench.publish(1, config=config)

    with pytest.raises(IncompatibleAdapter):
        run(lambda: bench.ask("x@1"))
    assert bench.registry.find("x@1").state == "ready"
    assert bench.engine.loads == []


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


def test_an_alias_takes_effect_only_when_its_version_is_proved(bench: Bench) -> None:
    for value in (1, 2):
        bench.publish(value)
    bench.engine.dishonest.add(bench.digest("x@2"))

    async def work() -> tuple[str, str]:
        bench.registry.promote("x@1")
        await bench.models.catch_up()
        first = (await bench.ask("x")).reference
        bench.registry.promote("x@2")
        await bench.models.catch_up()
        return first, (await bench.ask("x")).reference

    assert run(work) == ("x@1", "x@1")
    assert "proof" in bench.models.failures()["x", "production"]


def test_an_alias_that_failed_for_a_passing_reason_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.RETRY_S", 0.0)
    bench.publish(1)
    bench.registry.promote("x@1")
    digest = bench.digest("x@1")
    bench.engine.failing[digest] = StoreFailed("gone")

    async def work() -> str:
        await bench.models.catch_up()
        with pytest.raises(NotReady):
            await bench.ask("x")
        bench.engine.failing.clear()
        await bench.models.catch_up()
        return (await bench.ask("x")).reference

    assert run(work) == "x@1"
    assert bench.models.failures() == {}


def test_without_a_name_the_fitting_adapter_promoted_last_answers(bench: Bench) -> None:
    bench.residency = bench.residency
    pairs = {"one": ["en", "fr"], "two": ["en", "fr"], "three": ["en", "de"]}
    for number, (name, languages) in enumerate(pairs.items()):
        bench.publish(number + 1, name, task="translate", languages=languages)

    async def work() -> list[str]:
        for name in ("two", "one"):
            bench.registry.promote(f"{name}@1")
            await bench.models.catch_up()
        asks = (("en", "fr"), (None, "fr-CA"), ("de", "fr"), ("en", "de"))
        return [
            (await bench.ask(None, task="translate", source_lang=s, target_lang=t)).reference
            for s, t in asks
        ]

    assert run(work) == ["one@1", "one@1", "b", "b"]


def test_equal_content_under_two_names_answers_under_each(bench: Bench) -> None:
    bench.publish(1, "one")
    bench.publish(1, "two")

    async def work() -> list[str]:
        return [(await bench.ask(f"{name}@1")).reference for name in ("one", "two")]

    assert run(work) == ["one@1", "two@1"]
    assert len(bench.engine.loads) == 1


def test_names_that_do_not_exist_are_not_found(bench: Bench) -> None:
    bench.publish(1)

    for name in ("nobody", "x@9", "x@staging", "x", "a/b"):
        with pytest.raises(ModelNotFound):
            run(lambda name=name: bench.ask(name))
    assert run(lambda: bench.ask("b")).proof == "base"
