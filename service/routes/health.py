"""Health, version and metrics: what probes, scrapers and operators ask."""

from importlib.metadata import version as installed

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.documents import document
from service.errors import NotReady

router = APIRouter()


@router.get("/health/live")
async def live(raw_request: Request) -> JSONResponse:
    """200 while the engine runs."""
    await raw_request.app.state.modiste.engine.check_alive()
    return JSONResponse({"status": "live"})


@router.get("/health/ready")
async def ready(raw_request: Request) -> JSONResponse:
    """200 once live adapters were loaded and proved, and while the engine runs.

    `not_served` counts aliases that could not take effect; their adapters say why.
    """
    state = raw_request.app.state.modiste
    await state.engine.check_alive()
    if not state.models.ready:
        raise NotReady("live adapters are being loaded and proved", hint="wait")
    # their names are their projects' own, and this route asks for no key
    return JSONResponse({"status": "ready", "not_served": len(state.models.failures())})


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
