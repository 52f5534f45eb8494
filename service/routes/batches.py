"""OpenAI's batches: asked for here, done by the server when it has room."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from openai.types import Batch
from pydantic import BaseModel, ConfigDict, Field

from service.batches.queue import (
    CANCELLED,
    COMPLETED,
    ENDPOINTS,
    EXPIRED,
    FAILED,
    Batches,
    NewBatch,
    window_of,
)
from service.body import CHECKED
from service.database import BatchRow
from service.documents import Listing, answers
from service.errors import BadRequest
from service.objects import ExpiresAfter, Metadata, Page, listing, seconds
from service.record import current_caller, current_project
from service.routes.files import find_file

router = APIRouter(dependencies=[CHECKED])


class BatchRequest(BaseModel):
    """The body of a request for a batch."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(min_length=1, max_length=200)
    endpoint: str = Field(max_length=200)
    completion_window: str = Field(max_length=40)
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


@router.post("/v1/batches", responses=answers(Batch))
async def create_batch(request: BatchRequest, raw_request: Request) -> JSONResponse:
    """Keep a batch; its lines are asked when the engine has room."""
    if request.endpoint not in ENDPOINTS:
        raise BadRequest(
            f"endpoint: {request.endpoint[:80]!r} is not served in a batch", param="endpoint",
            hint=f"give one of {', '.join(ENDPOINTS)}",
        )  # fmt: skip
    window_of(request.completion_window)
    await find_file(raw_request, request.input_file_id, "input_file_id", "batch")
    expiry = request.output_expires_after
    new = NewBatch(
        current_project(), current_caller(), request.endpoint,
        request.input_file_id, request.completion_window,
        None if expiry is None else expiry.seconds, request.metadata,
    )  # fmt: skip
    batch = await asyncio.to_thread(_batches(raw_request).create, new)
    return JSONResponse(describe_batch(batch))


@router.get("/v1/batches", responses=answers(Listing[Batch]))
async def list_batches(raw_request: Request, page: Annotated[Page, Query()]) -> JSONResponse:
    """The project's batches, the last first."""
    batches, more = await asyncio.to_thread(
        _batches(raw_request).page, current_project(), after=page.after, limit=page.limit
    )
    return JSONResponse(listing([describe_batch(batch) for batch in batches], more=more))


@router.get("/v1/batches/{batch_id}", responses=answers(Batch))
async def retrieve_batch(batch_id: str, raw_request: Request) -> JSONResponse:
    """How far a batch is."""
    batch = await asyncio.to_thread(_batches(raw_request).find, batch_id, current_project())
    return JSONResponse(describe_batch(batch))


@router.post("/v1/batches/{batch_id}/cancel", responses=answers(Batch))
async def cancel_batch(batch_id: str, raw_request: Request) -> JSONResponse:
    """End a batch; what was answered is kept."""
    batch = await asyncio.to_thread(_batches(raw_request).cancel, batch_id, current_project())
    return JSONResponse(describe_batch(batch))


def describe_batch(batch: BatchRow) -> dict[str, Any]:
    """OpenAI's `batch` object."""

    def ended(status: str) -> int | None:
        return seconds(batch.ended) if batch.status == status else None

    errors = None if batch.errors is None else {"object": "list", "data": batch.errors}
    return {
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint, "errors": errors,
        "input_file_id": batch.input_file, "completion_window": batch.window,
        "status": batch.status, "output_file_id": batch.output_file,
        "error_file_id": batch.error_file, "created_at": seconds(batch.created),
        "in_progress_at": seconds(batch.in_progress), "expires_at": seconds(batch.expires),
        "finalizing_at": seconds(batch.finalizing), "completed_at": ended(COMPLETED),
        "failed_at": ended(FAILED), "expired_at": ended(EXPIRED),
        "cancelling_at": seconds(batch.cancelling), "cancelled_at": ended(CANCELLED),
        "request_counts": {
            "total": batch.total, "completed": batch.completed, "failed": batch.failed
        },
        "metadata": batch.labels,
    }  # fmt: skip


def _batches(raw_request: Request) -> Batches:
    batches: Batches = raw_request.app.state.modiste.batches
    return batches
