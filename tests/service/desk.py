"""The routes that need no engine, behind the real edge, on a port of their own.

`python -m tests.service.desk HOME PORT LOG` serves a home with a stand-in for the engine, to be
killed.
"""

import asyncio
import functools
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from adapters.registry import Registry
from bench.servers import free_port
from service import errors
from service.auth import Authenticator
from service.batches.bench import Bench
from service.batches.gate import Gate
from service.batches.parts import Parts
from service.batches.queue import Batches
from service.batches.runner import run_batches
from service.bounds import body_bounds
from service.callers import WhileThere
from service.children import Children
from service.documents import ERRORS
from service.ending import Ending, before_shutdown
from service.errors import BadRequest, Overloaded
from service.files import new_id
from service.inside import ask
from service.jobs.queue import Jobs
from service.keys import Keys
from service.limiting.limiter import Limiter
from service.limiting.limits import Defaults
from service.middleware import Edge, Table
from service.models import Models
from service.record import current_record
from service.routes import audit, batches, files, fine_tuning, health, models, usage
from service.scopes import ALL
from service.settings import Settings
from service.telemetry import Metrics
from service.traffic import Traffic
from service.usage import Usage


@dataclass(frozen=True)
class Desk:
    """A running app, its registry, and a key of each of two projects."""

    registry: Registry
    cabinet: files.Cabinet
    url: str
    keys: dict[str, str]
    metrics: Metrics
    authenticator: Authenticator
    limiter: Limiter

    def openai(self, project: str = "ours") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.keys[project], max_retries=0, timeout=30
        )

    def http(self, project: str = "ours") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[project]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


def until_caller_goes(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """For a handler that reads its body itself."""

    @functools.wraps(handler)
    async def wrapper(raw_request: Request) -> Any:
        await raw_request.body()
        async with WhileThere(raw_request.receive):
            return await handler(raw_request)
        return None

    return wrapper


class StandIn:
    """Answers /v1/generate in place of the engine; what a prompt begins with decides how.

    Args:
        log: each prompt that comes is added to it, with the caller and the priority.
    """

    def __init__(self, log: Path) -> None:
        self.log, self.router, self._seen = log, APIRouter(), Counter[str]()
        self.running = self.most = 0
        self.draining = self.dead = False
        self.traffic = Traffic()
        self.router.post("/v1/generate")(until_caller_goes(self.generate))

    def shutdown(self) -> None:
        """As vLLM's engine client: from now on every answer is none, with status 200."""
        self.draining = True

    async def generate(self, raw_request: Request) -> Any:
        prompt = str((await raw_request.json())["prompt"])
        record = current_record()
        assert record is not None
        with self.log.open("a") as file:
            file.write(
                f"{ascii(prompt)[1:-1]} {record.project} {record.caller} {record.priority}\n"
            )
        self.running += 1
        self.most = max(self.most, self.running)
        self.traffic.enter(record)
        try:
            return await self._answer(prompt)
        finally:
            self.running -= 1
            self.traffic.leave(record)

    async def _answer(self, prompt: str) -> Any:
        self._seen[prompt] += 1
        what, _, rest = prompt.partition(" ")
        if self.draining:
            return {"object": "generate", "text": ""}
        if what in ("slow", "fatal"):
            await asyncio.sleep(0.05 if what == "slow" else 1.2)
        elif what == "never":
            await asyncio.sleep(3600)
        elif what == "wrong":
            raise BadRequest("no such prompt", param="prompt")
        elif what == "busy" and self._seen[prompt] < 3:
            raise Overloaded("no room")
        elif what == "broken":
            raise RuntimeError("a bug")
        elif what == "unreadable":
            return PlainTextResponse("no JSON")
        lost = self._is_lost(what, prompt)
        return {"object": "generate", "text": "" if lost else rest}

    def _is_lost(self, what: str, prompt: str) -> bool:
        """Whether the engine ends or lets go of the request on the way."""
        record = current_record()
        if what == "aborted" and self._seen[prompt] < 3 and record is not None:
            record.aborted = True
            return True
        self.dead |= what in ("deadly", "fatal")
        return self.draining or self.dead

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def make_app(
    registry: Registry, chosen: Settings, stand_in: StandIn | None, served: Models | None = None
) -> FastAPI:
    """Files, uploads, jobs and batches; batches are worked on where something answers."""
    metrics = Metrics(CollectorRegistry())
    made, queue = Keys(registry.database), Batches(registry.database, lease_s=2)
    cabinet, children = files.Cabinet.open(registry, chosen.max_file_bytes), Children()
    routers = [files.router, fine_tuning.router, batches.router, usage.router, audit.router]
    routers += [] if served is None else [models.router]

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(app.state.limiter.run())
        async with at_batches(app):
            yield
        following.cancel()
        await asyncio.wait({following})

    @asynccontextmanager
    async def at_batches(app: FastAPI) -> AsyncIterator[None]:
        if stand_in is None:
            yield
            return
        ending = Ending()
        bench = Bench(
            batches=queue, files=cabinet.files, keys=made, children=children, metrics=metrics,
            parts=Parts(cabinet.files.contents, cabinet.files.scratch),
            gate=Gate(stand_in.traffic, 8, 2), ask=partial(ask, app), ending=ending,
            dead=lambda: stand_in.dead, server=new_id("server-"),
        )  # fmt: skip
        before_shutdown(stand_in, ending, lambda: None)
        task = asyncio.create_task(run_batches(bench))
        yield
        task.cancel()
        await asyncio.wait({task})

    app = FastAPI(lifespan=working, openapi_url=None)
    for router in [*routers, *([] if stand_in is None else [stand_in.router])]:
        app.include_router(router, responses=ERRORS)
    app.get("/openapi.json", responses=ERRORS)(health.openapi)
    app.state.modiste = SimpleNamespace(
        cabinet=cabinet, children=children, registry=registry, settings=chosen,
        jobs=Jobs(registry.database), batches=queue, metrics=metrics,
        usage=Usage(registry.database),
        models=served, engine=SimpleNamespace(max_model_len=512),
    )  # fmt: skip
    app.state.authenticator = Authenticator([], made)
    app.state.limiter = Limiter(registry.database, Defaults.of(chosen), 512, new_id("server-"))
    errors.install(app, {})
    paths = [route.path for route in app.router.routes if isinstance(route, APIRoute)]
    app.add_middleware(
        Edge, table=Table.of(paths), authenticator=app.state.authenticator,
        metrics=metrics, bounds=body_bounds(chosen), limiter=app.state.limiter,
    )  # fmt: skip
    return app


@contextmanager
def desk(
    home: Path, served: Models | None = None, stand_in: StandIn | None = None, **settings: Any
) -> Iterator[Desk]:
    """Serve a home's files, jobs and batches, and what `served` resolves."""
    registry = Registry.open(home)
    made = Keys(registry.database)
    keys = {project: made.create(project, scopes=ALL)[1] for project in ("ours", "theirs")}
    app = make_app(registry, Settings(**settings), stand_in, served)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        yield Desk(
            registry, app.state.modiste.cabinet, f"http://127.0.0.1:{port}", keys,
            app.state.modiste.metrics, app.state.authenticator, app.state.limiter,
        )  # fmt: skip
    finally:
        server.should_exit = True
        thread.join()


class Draining(uvicorn.Server):
    """As vLLM's server: at SIGTERM the engine drains, and HTTP ends some time after."""

    stand_in: StandIn
    drains_s = 1.0

    def handle_exit(self, sig: int, frame: Any) -> None:
        def drain() -> None:
            self.stand_in.shutdown()
            time.sleep(self.drains_s)
            self.should_exit = True

        threading.Thread(target=drain).start()


if __name__ == "__main__":
    _home, _port, _log = sys.argv[1:]
    _stand_in = StandIn(Path(_log))
    _app = make_app(Registry.open(Path(_home)), Settings(), _stand_in)
    _server = Draining(uvicorn.Config(_app, port=int(_port), log_level="info"))
    _server.stand_in = _stand_in
    _server.run()
