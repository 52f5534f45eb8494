"""Where the server is wired: vLLM's endpoint plugin.

vLLM calls `attach_router` while it builds its app, and `init_state` once its engine
and handlers are there. Our routes replace vLLM's of the same path; all others go.
"""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient

from adapters.bases import Base
from adapters.registry import Registry
from service import errors
from service.auth import Authenticator
from service.batches.gate import Gate
from service.batches.parts import Parts
from service.batches.queue import Batches
from service.batches.runner import gate_places, run_batches
from service.batches.work import Bench
from service.bounds import body_bounds
from service.capacity import Capacity
from service.children import Children
from service.demand import Demand
from service.documents import ERRORS
from service.engine import Engine, MeteredClient, engine_errors
from service.inside import ask
from service.jobs.embedded import EmbeddedWorker
from service.jobs.queue import Jobs
from service.middleware import Edge, Table
from service.models import Models
from service.record import current_record
from service.residency import Limits, Residency
from service.routes import (
    adapters,
    batches,
    files,
    fine_tuning,
    health,
    models,
    openai,
    responses,
    tasks,
    transfers,
    usage,
)
from service.settings import Settings
from service.telemetry import Metrics, RoutingCollector
from service.trials import Observer
from service.usage import Ledger, Usage

ROUTERS = (
    openai.router, responses.router, models.router, tasks.router, files.router, fine_tuning.router,
    batches.router, transfers.router, adapters.router, usage.router, health.router,
)  # fmt: skip
"""Every reachable route is in one of these; nothing of vLLM's own is."""


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


plan: ContextVar[Plan] = ContextVar("modiste_plan")
"""Set by `service.launch`: vLLM makes the plugin with no arguments."""


@dataclass(frozen=True, slots=True)
class Server:
    """The parts that routes reach, as `app.state.modiste`."""

    settings: Settings
    registry: Registry
    engine: Engine
    models: Models
    residency: Residency
    metrics: Metrics
    children: Children
    cabinet: files.Cabinet
    jobs: Jobs
    batches: Batches
    usage: Usage
    background: "tuple[asyncio.Task[None], ...]"
    """Held here: the event loop keeps no reference to its tasks."""


class ModistePlugin:
    """vLLM's `EndpointPlugin` protocol."""

    name = "modiste"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._plan = plan.get()
        self._app: FastAPI | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes; vLLM puts them in place of its own."""
        self._app = app
        for router in ROUTERS:
            app.include_router(router, responses=ERRORS)

    async def init_state(
        self,
        engine_client: EngineClient | None,
        state: State,
        args: Namespace,  # noqa: ARG002
    ) -> None:
        """Build the server around the engine, then leave only our routes reachable."""
        if engine_client is None or self._app is None:
            raise RuntimeError("modiste needs an engine; the render server has none")
        settings = self._plan.settings
        metrics = Metrics(REGISTRY)
        engine = Engine(engine_client, engine_client.renderer.get_tokenizer())
        residency = Residency(
            engine, self._plan.registry, state.openai_serving_models, self._limits(), metrics
        )
        models = Models(self._plan.registry, residency, self._plan.base)
        cabinet = files.Cabinet.open(self._plan.registry, settings.max_file_bytes)
        observer = Observer(self._plan.registry, residency.leasing.server, models, metrics)
        ledger = Ledger(self._plan.registry.database)
        demand = Demand(self._plan.registry, residency, metrics)
        children, queue = Children(), Batches(self._plan.registry.database)
        sequences = engine_client.vllm_config.scheduler_config.max_num_seqs
        bench = Bench(
            queue,
            cabinet.files,
            Parts(cabinet.files.contents, cabinet.files.scratch),
            children,
            Gate(engine.client.traffic, *gate_places(sequences)),
            partial(ask, self._app),
            residency.leasing.server,
            metrics,
        )
        worker = self._worker(engine_client)
        background = (
            asyncio.create_task(observer.run()),
            asyncio.create_task(demand.follow(models.caught_up)),
            asyncio.create_task(models.follow(settings.alias_poll_s)),
            asyncio.create_task(residency.leasing.keep(residency.digests)),
            asyncio.create_task(self._plan.authenticator.follow()),
            asyncio.create_task(cabinet.keep_expiring()),
            asyncio.create_task(_once_ready(models.caught_up, run_batches(bench))),
            asyncio.create_task(ledger.run()),
            *(() if worker is None else (asyncio.create_task(worker.run(models.caught_up)),)),
        )
        state.modiste = Server(
            settings,
            self._plan.registry,
            engine,
            models,
            residency,
            metrics,
            children,
            cabinet,
            Jobs(self._plan.registry.database),
            queue,
            Usage(self._plan.registry.database),
            background,
        )
        _meter_handlers(state, engine.client)
        _name_answers(state.openai_serving_models)
        _replace_lora_gauge(engine_client, residency)
        keep_only_our_routes(self._app)
        errors.install(self._app, engine_errors())
        self._app.middleware_stack = None  # built too early by vLLM's SageMaker bootstrap
        self._app.add_middleware(
            Edge,
            table=Table.of([route.path for route in our_routes()]),
            authenticator=self._plan.authenticator,
            metrics=metrics,
            bounds=body_bounds(settings),
            watchers=[observer.observe, ledger.observe],
        )

    def _worker(self, client: EngineClient) -> EmbeddedWorker | None:
        """The server's own worker; it is told of the end as soon as vLLM drains its requests."""
        settings, home = self._plan.settings, self._plan.registry.home.root
        if settings.worker_jobs == 0:
            return None
        worker = EmbeddedWorker.of(settings, home, self._plan.environment)
        _before_shutdown(client, worker.end)
        return worker

    def _limits(self) -> Limits:
        settings = self._plan.settings
        return Limits(
            base=self._plan.base.ref,
            max_rank=self._plan.capacity.max_rank,
            max_resident=self._plan.capacity.places,
            max_running=self._plan.capacity.slots,
            target_modules=frozenset(settings.lora_target_modules),
            room_wait_s=settings.version_wait_s,
        )


async def _once_ready(ready: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    await ready.wait()
    await work


def our_routes() -> list[APIRoute]:
    """The route table."""
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def keep_only_our_routes(app: FastAPI) -> None:
    """Drop every route, mount and page that is not in the table."""
    ours = {route.endpoint for route in our_routes()}
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "endpoint", None) in ours
    ]
    app.openapi_schema = None


def _meter_handlers(state: State, client: MeteredClient) -> None:
    for name in ("openai_serving_chat", "openai_serving_completion", "openai_serving_responses"):
        getattr(state, name).engine_client = client


def _name_answers(served: Any) -> None:
    """Let vLLM's answers carry the public name instead of the engine's."""
    original = served.model_name

    def model_name(lora_request: Any = None) -> str:
        record = current_record()
        if record is not None and record.model is not None:
            return record.model.reference
        name: str = original(lora_request)
        return name

    served.model_name = model_name


def _before_shutdown(client: Any, tell: Callable[[], None]) -> None:
    """Call `tell` in this event loop when vLLM begins to stop its engine, from any thread."""
    stop, loop = client.shutdown, asyncio.get_running_loop()

    def shutdown(*args: Any, **kwargs: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(tell)
        stop(*args, **kwargs)

    client.shutdown = shutdown


def _replace_lora_gauge(client: Any, residency: Residency) -> None:
    """vLLM's gauge keeps a series for every combination of names that ever was."""
    manager = getattr(client, "logger_manager", None)
    loggers = [] if manager is None else list(manager.stat_loggers)
    for stat_logger in loggers:
        gauge = getattr(stat_logger, "gauge_lora_info", None)
        if gauge is not None:
            REGISTRY.unregister(gauge)
            stat_logger.gauge_lora_info = None
    RoutingCollector(residency, REGISTRY)
