"""OpenAI's responses through vLLM's handler, without a state: nothing of an answer is kept."""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from service.body import JsonRoute, json_body
from service.callers import with_cancellation
from service.engine import ErrorResponse, ResponsesRequest
from service.errors import BadRequest, ServiceError, from_service, from_unexpected
from service.fields import RESPONSES
from service.guard import guarded
from service.routes.openai import prepare, streamed, vllm_error
from service.well_typed import well_typed

router = APIRouter(route_class=JsonRoute)

Asked = Annotated[ResponsesRequest, well_typed(ResponsesRequest)]

TOOLS = frozenset({"function", "custom", "namespace"})
"""Those that the caller runs; all others would be run here."""


async def refuse_state(raw_request: Request) -> None:
    """A dependency, so that it speaks before the request's type does."""
    body = await json_body(raw_request)
    if isinstance(body, dict):
        check_stateless(body)


def check_stateless(body: Mapping[str, Any]) -> None:
    """Its items and tools can be read and run without anything that is kept here.

    Raises:
        BadRequest: it can't, with the field's name and what goes instead.
    """
    parts = body.get("input")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and part.get("type") == "item_reference":
            raise _refused("input", "send the item itself in place of its id")
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else []:
        if isinstance(tool, dict) and tool.get("type", "function") not in TOOLS:
            raise _refused("tools", f"give functions that the caller runs, not {tool['type']}")


def _refused(name: str, hint: str) -> BadRequest:
    return BadRequest(f"{name} is not served", param=name, hint=hint, code="unsupported_field")


@router.post("/v1/responses", dependencies=[Depends(refuse_state), guarded(RESPONSES)])
@with_cancellation
async def create_response(request: Asked, raw_request: Request) -> Response:
    """Answer as OpenAI's responses API does; the whole conversation is in the request."""
    handler = raw_request.app.state.openai_serving_responses
    _check_tools(request, handler)
    request.store = False
    await prepare(request, raw_request)
    result = await handler.create_responses(request, raw_request)
    if isinstance(result, ErrorResponse):
        return vllm_error(result)
    if hasattr(result, "model_dump"):
        return JSONResponse(_stateless(result.model_dump(mode="json", by_alias=True)))
    return streamed(events(result), raw_request)


def _check_tools(request: ResponsesRequest, handler: Any) -> None:
    """Without a parser vLLM would answer with text, whatever `tool_choice` says."""
    has_parser = getattr(handler.parser, "tool_parser_cls", None) is not None
    if request.tools and request.tool_choice != "none" and not (has_parser or handler.use_harmony):
        raise BadRequest(
            "tools are not served for this model", param="tools", code="unsupported_field",
            hint="the operator starts the server with "
            "`-- --enable-auto-tool-choice --tool-call-parser NAME`",
        )  # fmt: skip


async def events(found: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
    """vLLM's events as OpenAI's client reads them; what fails on the way is one more.

    An answer that was cut by `max_output_tokens` ends with `response.completed` and the status
    `incomplete`, as vLLM has it: from `response.incomplete` OpenAI's client makes no final answer.
    """
    number = 0
    try:
        async for event in found:
            told = event.model_dump(mode="json", by_alias=True)
            if "response" in told:
                _stateless(told["response"])
            number = told["sequence_number"] + 1
            yield _sse(event.type, told)
    except ServiceError as error:
        yield _failure(from_service(error), number)
    except Exception as error:  # noqa: BLE001 - logged there; the status is already sent
        yield _failure(from_unexpected(error), number)
    finally:
        await found.aclose()


def _failure(answer: JSONResponse, number: int) -> str:
    """OpenAI's event `error`; its client raises for the `error` within."""
    error = json.loads(bytes(answer.body))["error"]
    flat = {name: error[name] for name in ("code", "message", "param")}
    return _sse("error", {"type": "error", **flat, "sequence_number": number, "error": error})


def _sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _stateless(response: dict[str, Any]) -> dict[str, Any]:
    """What vLLM leaves out of OpenAI's object."""
    response.update(store=False, error=None)
    return response
