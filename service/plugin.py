"""Where the server is wired: vLLM's endpoint plugin.

vLLM calls `attach_router` while it builds its app, and `init_state` once its engine
and handlers are there. Our routes replace vLLM's of the same path; all others go.
"""

import asyncio
from argparse import Namespace
from contextvars import ContextVar
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.envs import enable_envs_cache
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from service import errors
from service.admission.queue import Admission
from service.admission.room import Room, Step
from service.assembly import Plan, assemble
from service.bounds import body_bounds
from service.documents import ERRORS
from service.door import Door
from service.ending import before_shutdown, end_in_time
from service.engine import Engine, MeteredClient, engine_errors, tell_of_the_end, try_chat
from service.middleware import Edge, Table
from service.record import current_record
from service.request_text import TextKeeper
from service.residency import Residency
from service.routes import (
    adapters,
    audit,
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
from service.scopes import check_routes
from service.short_calls import run_short_calls_here
from service.streaming import shorten
from service.telemetry import RoutingCollector

ROUTERS = (
    openai.router, responses.router, models.router, tasks.router, files.router, fine_tuning.router,
    batches.router, transfers.router, adapters.router, usage.router, audit.router, health.router,
)  # fmt: skip
"""Every reachable route is in one of these; nothing of vLLM's own is."""


plan: ContextVar[Plan] = ContextVar("modiste_plan")
"""Set by `service.launch`: vLLM makes the plugin with no arguments."""


class ModistePlugin:
    """vLLM's `EndpointPlugin` protocol."""

    name = "modiste"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._plan = plan.get()
        self._app: FastAPI | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes; vLLM puts them in place of its own."""
        check_routes((method, route.path) for route in our_routes() for method in route.methods)
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
        enable_envs_cache()  # as in vLLM's other processes: each request asks for several
        server = assemble(
            self._plan,
            Engine(engine_client, engine_client.renderer.get_tokenizer()),
            state.openai_serving_models,
            engine_room(engine_client, self._plan.settings.max_running_sequences),
            self._app,
            partial(try_chat, state.openai_serving_chat, self._plan.base.name),
        )
        state.modiste = server
        before_shutdown(engine_client, server.ending, partial(tell_of_the_end, engine_client))
        end_in_time(self._app, server.ending, server.settings.shutdown_grace_s)
        _meter_handlers(state, server.engine.client)
        _name_answers(state.openai_serving_models)
        shorten(state.openai_serving_chat)
        run_short_calls_here(engine_client.renderer, short_calls(engine_client.renderer))
        _replace_lora_gauge(engine_client, server.residency)
        listen(engine_client, server.admission)
        keep_only_our_routes(self._app)
        errors.install(self._app, engine_errors())
        _drop_middleware(self._app)
        self._app.middleware_stack = None  # built too early by vLLM's SageMaker bootstrap
        if server.settings.log_requests and server.settings.log_request_text:
            self._app.add_middleware(TextKeeper)
        self._app.add_middleware(Door, ending=server.ending)  # within the edge
        self._app.add_middleware(
            Edge,
            table=Table.of([route.path for route in our_routes()]),
            authenticator=self._plan.authenticator,
            metrics=server.metrics,
            bounds=body_bounds(server.settings),
            watchers=server.watchers,
            limiter=server.limiter,
        )


def engine_room(client: Any, most: int | None) -> Room:
    """The engine's places, as it was started."""
    config = client.vllm_config
    return Room(
        config.scheduler_config.max_num_seqs, config.cache_config.kv_cache_size_tokens, most
    )


def listen(client: Any, admission: Admission) -> None:
    """Let the queue hear of every step of the engine, unless its figures are off."""
    manager = getattr(client, "logger_manager", None)
    if manager is not None:
        manager.stat_loggers.append(Steps(admission))
        admission.engine_tells = True


class Steps(AggregateStatLoggerBase):  # type: ignore[misc]
    """vLLM's logger of figures: what the queue reads of them."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,  # noqa: ARG002
        engine_idx: int = 0,  # noqa: ARG002
    ) -> None:
        if scheduler_stats is None or iteration_stats is None:
            return
        tokens = iteration_stats.num_prompt_tokens + iteration_stats.num_generation_tokens
        step = Step(tokens, scheduler_stats.num_waiting_reqs, scheduler_stats.kv_cache_usage)
        # what went wrong there must not end the task that reads the engine's answers
        asyncio.get_running_loop().call_soon(self._admission.observe, step)

    def log_engine_initialized(self) -> None:
        """It was, before this one came."""


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


def short_calls(renderer: Any) -> dict[str, Any]:
    """What a renderer of vLLM's does in a thread for each prompt."""
    calls = {"_tokenize_prompt_async": renderer._tokenize_prompt}
    if isinstance(renderer, HfRenderer):
        calls["_apply_chat_template_async"] = safe_apply_chat_template
    return calls


def _drop_middleware(app: FastAPI) -> None:
    """Take out what counts requests beside our own metrics, and web sockets, of which there are
    none: each is a step for every event of a stream."""
    dropped = {"PrometheusInstrumentatorMiddleware", "WebSocketMetricsMiddleware"}
    app.user_middleware[:] = [
        one for one in app.user_middleware if getattr(one.cls, "__name__", "") not in dropped
    ]


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
