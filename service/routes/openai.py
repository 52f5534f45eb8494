"""OpenAI's inference routes: our names, limits and receipts around vLLM's handlers."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from service.admission.door import admit_openai
from service.engine import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorResponse,
    with_cancellation,
    with_sse_keep_alive,
)
from service.errors import BadRequest, error_response
from service.models import Models
from service.record import PRIORITY_INTERACTIVE, current_record

router = APIRouter()

OPERATORS_FIELDS = frozenset(
    {
        "priority", "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "cache_salt",
        "use_beam_search", "session_id", "chat_template", "chat_template_kwargs", "documents",
        "mm_processor_kwargs", "media_io_kwargs", "prompt_logprobs", "prompt_embeds",
        "truncate_prompt_tokens", "logits_processors", "request_id", "kv_hints", "mm_payload",
        "return_mm_kwargs", "watermarking", "previous_input_messages", "enable_response_messages",
    }
)  # fmt: skip
"""Fields of vLLM's request types that steer the engine; a caller may not set them."""


@router.post("/v1/chat/completions")
@with_cancellation
async def chat_completions(request: ChatCompletionRequest, raw_request: Request) -> Response:
    """Answer a chat as OpenAI's API does."""
    if request.echo:  # it would ask for the prompt's log-probabilities, which end the CPU engine
        raise BadRequest(
            "echo is not served", param="echo", hint="leave it out", code="unsupported_field"
        )
    handler = raw_request.app.state.openai_serving_chat
    return await _answer(request, raw_request, handler.create_chat_completion)


@router.post("/v1/completions")
@with_cancellation
async def completions(request: CompletionRequest, raw_request: Request) -> Response:
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
    return streamed(result, raw_request)


async def prepare(request: Any, raw_request: Request) -> None:
    """Make a request of one for vLLM's handler: what answers it, and for whom.

    Raises:
        BadRequest, ModelNotFound, NotReady, AdapterError, Overloaded.
    """
    _refuse_operators_fields(request)
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


def streamed(events: AsyncGenerator[str, None], raw_request: Request) -> StreamingResponse:
    """Server-sent events, with signs of life in between where the operator wants them."""
    keep_alive_s = float(raw_request.app.state.args.sse_keep_alive_interval)
    return StreamingResponse(
        with_sse_keep_alive(events, keep_alive_s), media_type="text/event-stream"
    )


def _refuse_operators_fields(request: Any) -> None:
    for name in sorted(request.model_fields_set & OPERATORS_FIELDS):
        if getattr(request, name, None) not in (None, False):
            raise BadRequest(
                f"{name} is set by the operator, not in a request",
                param=name, hint=f"leave {name} out", code="unsupported_field",
            )  # fmt: skip


def vllm_error(result: ErrorResponse) -> JSONResponse:
    error = result.error
    code = "model_not_found" if error.code == 404 else "invalid_value"
    kind = "server_error" if error.code >= 500 else "invalid_request_error"
    return error_response(error.code, error.message, kind, code, error.param)
