"""The routes that need no engine, behind the real edge, on a port of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from adapters.registry import Registry
from bench.servers import free_port
from service import errors
from service.auth import Authenticator
from service.bounds import body_bounds
from service.children import Children
from service.jobs.queue import Jobs
from service.keys import Keys
from service.middleware import Edge, Table
from service.routes import files, fine_tuning, usage
from service.settings import Settings
from service.telemetry import Metrics
from service.usage import Usage


@dataclass(frozen=True)
class Desk:
    """A running app, its registry, and a key of each of two projects."""

    registry: Registry
    cabinet: files.Cabinet
    url: str
    keys: dict[str, str]

    def openai(self, project: str = "ours") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.keys[project], max_retries=0, timeout=30
        )

    def http(self, project: str = "ours") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[project]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


@contextmanager
def desk(home: Path, **settings: Any) -> Iterator[Desk]:
    """Serve files, uploads and fine-tuning jobs of a home."""
    registry = Registry.open(home)
    made = Keys(registry.database)
    keys = {project: made.create(project)[1] for project in ("ours", "theirs")}
    chosen = Settings(**settings)
    cabinet = files.Cabinet.open(registry, chosen.max_file_bytes)
    app, routers = FastAPI(), (files.router, fine_tuning.router, usage.router)
    for router in routers:
        app.include_router(router)
    app.state.modiste = SimpleNamespace(
        cabinet=cabinet,
        children=Children(),
        registry=registry,
        settings=chosen,
        jobs=Jobs(registry.database),
        usage=Usage(registry.database),
    )
    errors.install(app, {})
    app.add_middleware(
        Edge, table=Table.of([route.path for router in routers for route in router.routes]),
        authenticator=Authenticator([], made), metrics=Metrics(CollectorRegistry()),
        bounds=body_bounds(chosen),
    )  # fmt: skip
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        yield Desk(registry, cabinet, f"http://127.0.0.1:{port}", keys)
    finally:
        server.should_exit = True
        thread.join()
