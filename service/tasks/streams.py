"""Server-sent events: pieces of text as they come, then the whole result."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse

from service.engine import Piece, Sampling
from service.errors import EngineFailed, ServiceError, from_service, from_unexpected
from service.event_stream import EventStream
from service.tasks.responses import AnswerResult, GenerateResult, TranslateResult

if TYPE_CHECKING:
    from service.engine import Engine
    from service.models import Resolved


@dataclass(frozen=True, slots=True)
class Delta:
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of one item."""

    result: GenerateResult | TranslateResult | AnswerResult


Event = Delta | Done


async def pieces(
    engine: "Engine", prompt_ids: list[int], sampling: Sampling, model: "Resolved"
) -> AsyncGenerator[Piece, None]:
    """The engine's stream up to the piece with the whole output; closing it aborts the request.

    Raises:
        EngineFailed: the stream ended without that piece.
    """
    stream = engine.stream(prompt_ids, sampling, model)
    try:
        async for piece in stream:
            yield piece
            if piece.output is not None:
                return
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    raise EngineFailed("the engine ended an answer without finishing it", hint="try again")


async def merge(streams: Sequence[AsyncIterator[Event]]) -> AsyncGenerator[Event, None]:
    """Events of several streams as they come; closing it cancels them all.

    Raises:
        whatever a stream raises; the others are then cancelled.
    """
    # Bounded, so that a slow reader slows the streams and not the memory.
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue(maxsize=2 * len(streams))

    async def pour(stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                await queue.put(event)
        except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pour(stream)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _line(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _encode(event: Event) -> str:
    if isinstance(event, Delta):
        return _line({"index": event.index, "delta": event.text})
    result = event.result
    return _line(
        {
            "index": result.index,
            "finish_reason": result.finish_reason,
            "result": result.model_dump(mode="json"),
        }
    )


def _failure(response: JSONResponse) -> str:
    return f"data: {bytes(response.body).decode()}\n\n"


async def respond(events: AsyncGenerator[Event, None]) -> EventStream:
    """A streaming response that begins once there is a first event.

    What fails before then is raised here and gets its own status; what fails later
    can only be told in the stream: an event `{"error": …}`.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def body() -> AsyncGenerator[str, None]:
        try:
            yield _encode(first)
            async for event in events:
                yield _encode(event)
        except ServiceError as error:
            yield _failure(from_service(error))
        except Exception as error:  # noqa: BLE001 - logged there; the status is already sent
            yield _failure(from_unexpected(error))
        finally:
            await events.aclose()
        yield "data: [DONE]\n\n"

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return EventStream(body(), headers)
