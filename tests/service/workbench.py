"""Models and residency around an engine whose faults can be chosen."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from adapters.bases import Base
from adapters.registry import Registry
from service.inspector import Inspection
from service.models import Models, Resolved
from service.record import Record, set_record
from service.residency import Limits, Residency
from service.telemetry import Metrics
from tests.adapters.parcels import BASE, PROBE, draft, parcel


@dataclass
class FakeEngine:
    """Answers every probe honestly, unless told otherwise."""

    dtype: str = "float32"
    loads: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)
    dishonest: set[str] = field(default_factory=set)
    failing: dict[str, Exception] = field(default_factory=dict)
    inspections: dict[str, Inspection] = field(default_factory=dict)
    load_s: float = 0.0

    async def load(self, engine_name: str, identifier: int, folder: str) -> Any:
        self.loads.append(engine_name)
        await asyncio.sleep(self.load_s)
        if engine_name in self.failing:
            raise self.failing[engine_name]
        return engine_name

    async def inspect(self, request: Any) -> Inspection:
        return self.inspections.get(request, Inspection(tensors=2, largest_b=1.0))

    async def unload(self, request: Any) -> bool:
        self.unloaded.append(request)
        return True

    async def probe(self, prompt_ids: list[int], token_ids: list[int], request: Any) -> list[float]:
        self.probed.append(request)
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


def base_named(name: str, path: Path) -> Base:
    """A base that has no files."""
    return Base(
        name=name, path=path, source="", ref=BASE, context_length=9, architecture="",
        parameters=1, lora=True,
    )  # fmt: skip


class Bench:
    """Everything around one fake engine."""

    def __init__(self, tmp_path: Path, max_resident: int = 2) -> None:
        self.work = tmp_path
        self.registry = Registry.open(tmp_path / "home")
        self.engine, self.names = FakeEngine(), Names()
        limits = Limits(BASE, 8, max_resident, 2, frozenset({"q_proj"}), room_wait_s=0.05)
        metrics = Metrics(CollectorRegistry())
        self.residency = Residency(self.engine, self.registry, self.names, limits, metrics)
        self.models = Models(self.registry, self.residency, base_named("b", tmp_path))

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


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())
