"""Health, version and metrics: what probes, scrapers and operators ask."""

from importlib.metadata import version as installed

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.documents import document

router = APIRouter()


@router.get("/health/live")
async def live(raw_request: Request) -> JSONResponse:
    """200 while the engine works; a server that answers otherwise needs another start."""
    raw_request.app.state.modiste.readiness.check_live()
    return JSONResponse({"status": "live"})


@router.get("/health/ready")
async def ready(raw_request: Request) -> JSONResponse:
    """200 once live adapters were loaded and proved, and while the engine works.

    `not_served` counts aliases that could not take effect; their adapters say why. `database` is
    `away` where it doesn't answer: the server goes on with what it knows.
    """
    state = raw_request.app.state.modiste
    state.readiness.check()
    # their names are their projects' own, and this route asks for no key
    told = {"status": "ready", "not_served": len(state.models.failures())}
    database = "away" if state.readiness.database.away_s else "reachable"
    return JSONResponse({**told, "database": database})


@router.get("/version")
async def version(raw_request: Request) -> JSONResponse:
    """Versions of the server and of what it runs on, and the base model."""
    base = raw_request.app.state.modiste.models.base
    packages = ("modiste", "vllm", "torch", "transformers", "peft")
    return JSONResponse(
        {
            **{name: installed(name) for name in packages},
            "base": {"name": base.reference, "digest": base.digest},
        }
    )


@router.get("/openapi.json")
async def openapi(raw_request: Request) -> JSONResponse:
    """What the routes take and answer, as an OpenAPI document."""
    return JSONResponse(document(raw_request.app))


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(raw_request: Request) -> Response:
    """Prometheus text: ours and vLLM's."""
    page = await raw_request.app.state.modiste.metrics.page()
    return Response(page, media_type=CONTENT_TYPE_LATEST)
