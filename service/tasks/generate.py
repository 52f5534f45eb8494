"""Text that goes on from a prompt, or that fits a JSON schema."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jsonschema

from adapters.prompt import GenerateInput
from service.engine import Output, Sampling
from service.errors import BadRequest
from service.tasks import windows
from service.tasks.batch import together, usage_of
from service.tasks.responses import GenerateResult, Notice
from service.tasks.streams import Delta, Done, Event, merge, pieces
from service.tasks.wire import GenerateRequest, check_size

if TYPE_CHECKING:
    from service.engine import Engine
    from service.models import Resolved

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 32

TRUNCATED = Notice(
    code="truncated", message="the answer reached max_tokens or the end of the model's window"
)


@dataclass(frozen=True, slots=True)
class Generation:
    """A valid request; `sampling.max_tokens` is what was wished for."""

    prompts: tuple[str, ...]
    sampling: Sampling


def check(request: GenerateRequest) -> Generation:
    """Raises BadRequest: a schema that is none; TooLarge: too much text."""
    check_size(request.prompt, "prompt")
    if request.json_schema is not None:
        _check_schema(request.json_schema)
    sampling = Sampling(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        stop=request.stop,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        json_schema=request.json_schema,
    )
    return Generation(request.prompt, sampling)


def _check_schema(schema: dict[str, Any]) -> None:
    param, hint = "json_schema", "give a JSON Schema (draft 2020-12)"
    references, depth = _references_and_depth(schema)
    if depth > MAX_SCHEMA_DEPTH:
        raise BadRequest(
            f"json_schema is nested {depth} levels deep", param=param,
            hint=f"at most {MAX_SCHEMA_DEPTH}",
        )  # fmt: skip
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise BadRequest("json_schema must be valid Unicode", param=param) from error
    if size > MAX_SCHEMA_BYTES:
        raise BadRequest(
            f"json_schema has {size} bytes", param=param, hint=f"at most {MAX_SCHEMA_BYTES}"
        )
    for reference in references:
        if not reference.startswith("#"):
            raise BadRequest(
                f"json_schema refers to {reference[:80]!r}", param=param,
                hint="only references within the schema (#/…) are followed",
            )  # fmt: skip
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = f" at {error.json_path}" if error.json_path != "$" else ""
        message = f"json_schema is no JSON Schema{where}: {error.message[:200]}"
        raise BadRequest(message, param=param, hint=hint) from error


def _references_and_depth(schema: dict[str, Any]) -> tuple[list[str], int]:
    """All `$ref` and `$dynamicRef` and the levels of nesting, without recursion."""
    references: list[str] = []
    deepest = 0
    pending: list[tuple[Any, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        if not isinstance(value, dict | list):
            continue
        deepest = max(deepest, depth)
        if isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
            continue
        for key, item in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                references.append(item)
            pending.append((item, depth + 1))
    return references, deepest


async def run(asked: Generation, engine: "Engine", model: "Resolved") -> list[GenerateResult]:
    """One result for each prompt, in order, from one batch."""
    prompts = await _prompts(asked, engine, model)
    outputs = await together(
        engine.generate(prompt_ids, sampling, model) for prompt_ids, sampling in prompts
    )
    return [_result(index, output) for index, output in enumerate(outputs)]


async def stream(
    asked: Generation, engine: "Engine", model: "Resolved"
) -> AsyncGenerator[Event, None]:
    """Pieces of all prompts' texts as they come; a prompt's last event has its result."""
    prompts = await _prompts(asked, engine, model)

    async def one(index: int) -> AsyncGenerator[Event, None]:
        prompt_ids, sampling = prompts[index]
        async with aclosing(pieces(engine, prompt_ids, sampling, model)) as found:
            async for piece in found:
                if piece.delta:
                    yield Delta(index, piece.delta)
                if piece.output is not None:
                    yield Done(_result(index, piece.output))

    async with aclosing(merge([one(index) for index in range(len(prompts))])) as events:
        async for event in events:
            yield event


async def _prompts(
    asked: Generation, engine: "Engine", model: "Resolved"
) -> list[tuple[list[int], Sampling]]:
    """Token ids of every prompt and its sampling, max_tokens bounded by the window."""
    template = model.template("generate")
    all_ids = await together(
        engine.prompt_ids(template, GenerateInput(prompt)) for prompt in asked.prompts
    )
    wanted = asked.sampling.max_tokens
    return [
        (ids, replace(asked.sampling, max_tokens=windows.room(engine, ids, wanted, "prompt")))
        for ids in all_ids
    ]


def _result(index: int, output: Output) -> GenerateResult:
    return GenerateResult(
        index=index,
        text=output.text,
        finish_reason=output.finish_reason,
        usage=usage_of([output]),
        warnings=[TRUNCATED] if output.finish_reason == "length" else [],
    )
