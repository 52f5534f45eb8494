"""The server's parts around an engine: what routes reach, and what runs beside them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed
from typing import Any, Protocol

from prometheus_client import REGISTRY
from starlette.types import ASGIApp

from adapters.bases import Base
from adapters.registry import Registry
from service.admission.queue import Admission
from service.admission.queue import Limits as QueueLimits
from service.admission.room import Room
from service.auth import Authenticator
from service.batches.bench import Bench
from service.batches.gate import Gate
from service.batches.parts import Parts
from service.batches.queue import Batches
from service.batches.runner import gate_places, run_batches
from service.capacity import Capacity
from service.children import Children
from service.compiler import describe
from service.deletion import Deletion
from service.demand import Demand
from service.departures import follow_retirements
from service.ending import Ending, Outcome
from service.grammars import Grammars
from service.heap import HEAP
from service.inside import ask
from service.jobs.embedded import EmbeddedWorker
from service.jobs.queue import Jobs
from service.keys import Keys
from service.limiting.limiter import Limiter
from service.limiting.limits import Defaults
from service.logs import AccessLog, known_secrets
from service.loop_watch import LoopWatch
from service.models import Models
from service.protocol import Connections
from service.readiness import Part, Readiness
from service.record import Record
from service.redaction import Secrets
from service.residency import AdapterEngine, Limits, Residency, ServedNames
from service.retention import Periods, Retention
from service.routes.files import Cabinet
from service.settings import Settings
from service.survey import Survey
from service.telemetry import Metrics
from service.tracing import Tracing, otlp_exporter
from service.traffic import Traffic
from service.trials import Observer
from service.upkeep import keep_up
from service.usage import Ledger, Usage
from service.warming import Warming
from service.watchdog import Pulse


class MeteredEngine(AdapterEngine, Protocol):
    """`service.engine.Engine`, which imports vLLM."""

    @property
    def traffic(self) -> Traffic: ...
    @property
    def dead(self) -> bool: ...
    @property
    def pulse(self) -> Pulse: ...
    async def probe(
        self, prompt_ids: list[int], token_ids: list[int], request: Any, *, priority: int = ...
    ) -> list[float]: ...
    @property
    def client(self) -> Any: ...
    @property
    def max_model_len(self) -> int: ...


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
    outcome: Outcome
    """Where `service.launch` reads how the server ended."""
    connections: Connections

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
    admission: Admission
    metrics: Metrics
    children: Children
    grammars: Grammars
    cabinet: Cabinet
    jobs: Jobs
    batches: Batches
    usage: Usage
    limiter: Limiter
    watchers: tuple[Callable[[Record], None], ...]
    """Told of every request at its end."""
    worker: EmbeddedWorker | None
    ending: Ending
    readiness: Readiness
    background: "tuple[asyncio.Task[None], ...]"
    """Held here: the event loop keeps no reference to its tasks."""


def assemble(
    plan: Plan, engine: MeteredEngine, served: ServedNames, room: Room, app: ASGIApp,
    first_chat: Callable[[], Awaitable[None]],
) -> Server:  # fmt: skip
    """Make the parts and start what runs beside requests.

    Args:
        served: vLLM's own table of adapters.
        room: what the engine has for requests.
        app: where lines of batches are asked.
        first_chat: asks for a chat that nobody waits for.
    """
    settings, registry = plan.settings, plan.registry
    metrics = Metrics(REGISTRY, settings.metrics_versions)
    residency = Residency(engine, registry, served, plan.limits(), metrics)
    models = Models(registry, residency, plan.base)
    cabinet = Cabinet.open(registry, settings.max_file_bytes)
    retention = Retention(
        registry.database, cabinet.files, registry.home.jobs, Periods.of(settings)
    )
    observer = Observer(registry, residency.leasing.server, models, metrics)
    ledger, children, batches = Ledger(registry.database), Children(), Batches(registry.database)
    limiter = Limiter(
        registry.database, Defaults.of(settings), engine.max_model_len, residency.leasing.server,
        metrics.limited,
    )  # fmt: skip
    ending = Ending(plan.outcome)
    engine.pulse.may_stop = lambda: ending.begun and not ending.outcome.failure
    warming = Warming(engine, first_chat, ending)
    parts: dict[str, Part] = {
        "the engine has not answered yet": warming,
        "live adapters are being loaded and proved": models,
    }
    readiness = Readiness.of(settings, registry, engine, parts, ending)
    bench = Bench(
        batches=batches,
        files=cabinet.files,
        parts=Parts(cabinet.files.contents, cabinet.files.scratch),
        children=children,
        keys=Keys(registry.database),
        gate=Gate(
            engine.traffic,
            *gate_places(room.at_once),
            slots=residency.capacity,
            base=plan.base.name,
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
        ending.tell.append(worker.end)
    works: list[Coroutine[Any, Any, None]] = [
        readiness.follow(),
        warming.run(),
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
        limiter.run(),
        HEAP.keep_small(),
        # a start holds the loop up, and nobody waits for it yet
        _after(models.caught_up, LoopWatch(metrics.loop_held.observe).run()),
        Survey(registry.database, registry.home.root, metrics, residency.labels).run(),
        _after(models.caught_up, run_batches(bench)),
    ]
    if worker is not None:
        works.append(worker.run(models.caught_up))
    metrics.server.build.labels(installed("modiste"), installed("vllm"), plan.base.name).set(1)
    metrics.server.version_places.set(plan.capacity.places)
    plan.connections.refused.append(lambda code: metrics.connection_refusals.labels(code).inc())
    metrics.server.follow(
        connections=lambda: len(plan.connections.open),
        ready=lambda: readiness.ready,
        engine_up=lambda: not engine.dead,
        aliases_not_served=lambda: len(models.failures()),
    )
    return Server(
        settings=settings,
        registry=registry,
        engine=engine,
        models=models,
        residency=residency,
        admission=Admission(room, queue_limits(settings), metrics, engine.traffic),
        metrics=metrics,
        children=children,
        grammars=Grammars(settings.grammar_wait_s, partial(describe, engine.client)),
        cabinet=cabinet,
        jobs=Jobs(registry.database),
        batches=batches,
        usage=Usage(registry.database),
        limiter=limiter,
        watchers=(observer.observe, ledger.observe, *_tellers(plan, residency.leasing.server)),
        worker=worker,
        ending=ending,
        readiness=readiness,
        background=tuple(asyncio.create_task(work) for work in works),
    )


def _tellers(plan: Plan, server: str) -> list[Callable[[Record], None]]:
    """Who tell of each request: in a trace, then in the log, which names the trace."""
    settings, tellers = plan.settings, list[Callable[[Record], None]]()
    if settings.otlp_endpoint is not None:
        exporter = otlp_exporter(settings.otlp_endpoint)
        tellers.append(Tracing(exporter, settings.trace_ratio, server).observe)
    if settings.log_requests:
        secrets = Secrets(known_secrets(plan.environment, settings))
        text = secrets.of_request if settings.log_request_text else None
        tellers.append(AccessLog(text).observe)
    return tellers


def queue_limits(settings: Settings) -> QueueLimits:
    return QueueLimits(
        requests=settings.max_queued_requests,
        tokens=settings.max_queued_tokens,
        wait_s=settings.queue_wait_s,
        wait_s_by_route=settings.queue_wait_s_by_route,
        weights=settings.project_weights,
    )


async def _after(ready: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    await ready.wait()
    await work
