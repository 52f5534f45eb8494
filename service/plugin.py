"""Where the server is wired: vLLM's endpoint plugin.

vLLM calls `attach_router` while it builds its app, and `init_state` once its engine
and handlers are there. Our routes replace vLLM's of the same path; all others go.
"""

from argparse import Namespace
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient

from service import errors
from service.assembly import Plan, assemble
from service.bounds import body_bounds
from service.documents import ERRORS
from service.ending import before_shutdown
from service.engine import Engine, MeteredClient, engine_errors
from service.middleware import Edge, Table
from service.record import current_record
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
        server = assemble(
            self._plan,
            Engine(engine_client, engine_client.renderer.get_tokenizer()),
            state.openai_serving_models,
            engine_client.vllm_config.scheduler_config.max_num_seqs,
            self._app,
        )
        state.modiste = server
        # told of the end before vLLM drains its requests
        tell = () if server.worker is None else (server.worker.end,)
        before_shutdown(engine_client, server.ending, tell)
        _meter_handlers(state, server.engine.client)
        _name_answers(state.openai_serving_models)
        _replace_lora_gauge(engine_client, server.residency)
        keep_only_our_routes(self._app)
        errors.install(self._app, engine_errors())
        self._app.middleware_stack = None  # built too early by vLLM's SageMaker bootstrap
        self._app.add_middleware(
            Edge,
            table=Table.of([route.path for route in our_routes()]),
            authenticator=self._plan.authenticator,
            metrics=server.metrics,
            bounds=body_bounds(server.settings),
            watchers=server.watchers,
        )


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
