"""OpenAI's inference routes: our names, limits and receipts around vLLM's handlers."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.admission.entry import admit_openai
from service.callers import with_cancellation
from service.direct import DirectRoute
from service.engine import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorResponse,
    with_sse_keep_alive,
)
from service.errors import BadRequest, EngineFailed, EngineStopped, error_response, from_service
from service.event_stream import EventStream
from service.fields import CHAT, COMPLETIONS
from service.guard import guarded
from service.models import Models
from service.record import PRIORITY_INTERACTIVE, current_record
from service.streaming import ERROR
from service.well_typed import well_typed

router = APIRouter(route_class=DirectRoute)

Chat = Annotated[ChatCompletionRequest, well_typed(ChatCompletionRequest)]
Completion = Annotated[CompletionRequest, well_typed(CompletionRequest)]


@router.post("/v1/chat/completions", dependencies=[guarded(CHAT)])
@with_cancellation
async def chat_completions(request: Chat, raw_request: Request) -> Response:
    """Answer a chat as OpenAI's API does."""
    handler = raw_request.app.state.openai_serving_chat
    return await _answer(request, raw_request, handler.create_chat_completion)


@router.post("/v1/completions", dependencies=[guarded(COMPLETIONS)])
@with_cancellation
async def completions(request: Completion, raw_request: Request) -> Response:
    """Continue a prompt as OpenAI's API does."""
    if request.echo and request.logprobs is not None:
        raise BadRequest(
            "echo with logprobs is not served", param="echo",
            hint="ask for logprobs of the completion alone",
        )  # fmt: skip
    handler = raw_request.app.state.openai_serving_completion
    return await _answer(request, raw_request, handler.create_completion)


async def _answer(
    request: Any, raw_request: Request, create: Callable[[Any, Request], Awaitable[Any]]
) -> Response:
    await prepare(request, raw_request)
    result = await create(request, raw_request)
    if isinstance(result, ErrorResponse):
        return vllm_error(result)
    if hasattr(result, "model_dump"):
        return JSONResponse(result.model_dump())
    return streamed(_in_our_words(result, raw_request), raw_request)


async def _in_our_words(
    events: AsyncGenerator[str, None], raw_request: Request
) -> AsyncGenerator[str, None]:
    """vLLM's events; an error among them is told as everywhere else."""
    try:
        async for event in events:
            if event.startswith(ERROR):
                told = ErrorResponse.model_validate_json(event.removeprefix("data: "))
                dead = raw_request.app.state.modiste.engine.dead
                yield f"data: {bytes(vllm_error(told, dead=dead).body).decode()}\n\n"
            else:
                yield event
    finally:
        await events.aclose()


async def prepare(request: Any, raw_request: Request) -> None:
    """Make a request of one for vLLM's handler: what answers it, and for whom.

    Raises:
        BadRequest, ModelNotFound, NotReady, AdapterError, Overloaded.
    """
    if request.model is None:
        raise BadRequest(
            "model is missing", param="model", code="missing_field",
            hint="name a model of GET /v1/models",
        )  # fmt: skip
    models: Models = raw_request.app.state.modiste.models
    resolved = await models.resolve(request.model, task="generate")
    await admit_openai(request, raw_request)
    record = current_record()
    request.model = resolved.engine_name
    # a prefix cache shared between projects would tell by its speed what another asked
    request.cache_salt = record.project if record is not None else None
    request.priority = record.priority if record is not None else PRIORITY_INTERACTIVE


def streamed(events: AsyncGenerator[str, None], raw_request: Request) -> EventStream:
    """Server-sent events, with signs of life in between where the operator wants them."""
    keep_alive_s = float(raw_request.app.state.args.sse_keep_alive_interval)
    return EventStream(with_sse_keep_alive(events, keep_alive_s))


def vllm_error(result: ErrorResponse, *, dead: bool = False) -> JSONResponse:
    error = result.error
    if error.code >= 500:
        failed = EngineFailed("the engine failed on this request")
        return from_service(EngineStopped() if dead else failed)
    code = "model_not_found" if error.code == 404 else "invalid_value"
    return error_response(error.code, error.message, BadRequest.type, code, error.param)
