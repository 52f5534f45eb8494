"""The server's parts around an engine: what routes reach, and what runs beside them."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from prometheus_client import REGISTRY
from starlette.types import ASGIApp

from adapters.bases import Base
from adapters.registry import Registry
from service.auth import Authenticator
from service.batches.bench import Bench
from service.batches.gate import Gate
from service.batches.parts import Parts
from service.batches.queue import Batches
from service.batches.runner import gate_places, run_batches
from service.capacity import Capacity
from service.children import Children
from service.deletion import Deletion
from service.demand import Demand
from service.departures import follow_retirements
from service.ending import Ending
from service.inside import ask
from service.jobs.embedded import EmbeddedWorker
from service.jobs.queue import Jobs
from service.keys import Keys
from service.models import Models
from service.record import Record
from service.residency import AdapterEngine, Limits, Residency, ServedNames
from service.retention import Periods, Retention
from service.routes.files import Cabinet
from service.settings import Settings
from service.telemetry import Metrics
from service.traffic import Traffic
from service.trials import Observer
from service.upkeep import keep_up
from service.usage import Ledger, Usage


class MeteredEngine(AdapterEngine, Protocol):
    """`service.engine.Engine`, which imports vLLM."""

    @property
    def traffic(self) -> Traffic: ...
    @property
    def dead(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What `service.launch` decided before vLLM started."""

    settings: Settings
    registry: Registry
    base: Base
    authenticator: Authenticator
    capacity: Capacity
    environment: Mapping[str, str]
    """As it was before vLLM's was added."""

    def limits(self) -> Limits:
        return Limits(
            base=self.base.ref,
            max_rank=self.capacity.max_rank,
            max_resident=self.capacity.places,
            max_running=self.capacity.slots,
            target_modules=frozenset(self.settings.lora_target_modules),
            room_wait_s=self.settings.version_wait_s,
        )


@dataclass(frozen=True, slots=True)
class Server:
    """The parts that routes reach, as `app.state.modiste`."""

    settings: Settings
    registry: Registry
    engine: Any
    """`service.engine.Engine`."""
    models: Models
    residency: Residency
    metrics: Metrics
    children: Children
    cabinet: Cabinet
    jobs: Jobs
    batches: Batches
    usage: Usage
    watchers: tuple[Callable[[Record], None], ...]
    """Told of every request at its end."""
    worker: EmbeddedWorker | None
    ending: Ending
    background: "tuple[asyncio.Task[None], ...]"
    """Held here: the event loop keeps no reference to its tasks."""


def assemble(
    plan: Plan, engine: MeteredEngine, served: ServedNames, sequences: int, app: ASGIApp
) -> Server:
    """Make the parts and start what runs beside requests.

    Args:
        served: vLLM's own table of adapters.
        sequences: that the engine runs at once.
        app: where lines of batches are asked.
    """
    settings, registry = plan.settings, plan.registry
    metrics = Metrics(REGISTRY)
    residency = Residency(engine, registry, served, plan.limits(), metrics)
    models = Models(registry, residency, plan.base)
    cabinet = Cabinet.open(registry, settings.max_file_bytes)
    retention = Retention(
        registry.database, cabinet.files, registry.home.jobs, Periods.of(settings)
    )
    observer = Observer(registry, residency.leasing.server, models, metrics)
    ledger, children, batches = Ledger(registry.database), Children(), Batches(registry.database)
    ending = Ending()
    bench = Bench(
        batches=batches,
        files=cabinet.files,
        parts=Parts(cabinet.files.contents, cabinet.files.scratch),
        children=children,
        keys=Keys(registry.database),
        gate=Gate(
            engine.traffic, *gate_places(sequences), slots=residency.capacity, base=plan.base.name
        ),
        ask=partial(ask, app),
        ending=ending,
        dead=lambda: engine.dead,
        server=residency.leasing.server,
        metrics=metrics,
    )
    worker = None
    if settings.worker_jobs > 0:
        worker = EmbeddedWorker.of(settings, registry.home.root, plan.environment)
    works: list[Coroutine[Any, Any, None]] = [
        observer.run(),
        Demand(registry, residency, metrics).follow(models.caught_up),
        models.follow(settings.alias_poll_s),
        residency.leasing.keep(residency.digests),
        plan.authenticator.follow(),
        plan.authenticator.follow_issuer(),
        cabinet.keep_expiring(),
        keep_up(
            cabinet.in_thread,
            retention.keep,
            Deletion(registry, cabinet.files).finish,
            registry.forget_unknown,
        ),
        follow_retirements(registry, residency),
        ledger.run(),
        _after(models.caught_up, run_batches(bench)),
    ]
    if worker is not None:
        works.append(worker.run(models.caught_up))
    return Server(
        settings=settings,
        registry=registry,
        engine=engine,
        models=models,
        residency=residency,
        metrics=metrics,
        children=children,
        cabinet=cabinet,
        jobs=Jobs(registry.database),
        batches=batches,
        usage=Usage(registry.database),
        watchers=(observer.observe, ledger.observe),
        worker=worker,
        ending=ending,
        background=tuple(asyncio.create_task(work) for work in works),
    )


async def _after(ready: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    await ready.wait()
    await work
