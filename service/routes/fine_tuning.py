"""OpenAI's fine-tuning jobs: asked for here, done by workers."""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from openai.types.fine_tuning import FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import Field

from adapters.errors import AdapterError
from adapters.registry import Registry, Version, check_ready
from service.body import CHECKED
from service.database import CheckpointRow, JobEventRow, JobRow
from service.documents import FineTuningJob, Listing, answers
from service.errors import BadRequest
from service.jobs.orders import (
    TASK_RECIPES,
    NewJob,
    checked_suffix,
    settings_of,
    trainer_settings,
)
from service.jobs.queue import Jobs, Order
from service.objects import Page, listing, seconds
from service.record import current_caller, current_project
from service.routes.files import find_file
from service.scopes import ADMIN, check_scope

router = APIRouter(dependencies=[CHECKED])

_METADATA_KEY = re.compile(r"[\w .-]{1,64}")
"""Others mean something else in the database's paths into JSON."""


class CheckpointPage(Page):
    """The same, of checkpoints."""

    limit: int = Field(default=10, ge=1, le=100)


@router.post("/v1/fine_tuning/jobs", responses=answers(FineTuningJob))
async def create_job(request: NewJob, raw_request: Request) -> JSONResponse:
    """Put a job into the queue; a worker takes it from there."""
    method, seed = request.chosen_method(), request.chosen_seed()
    if method.modiste.promote:
        check_scope(ADMIN, "a job that promotes what it made", "method.modiste.promote")
    settings = trainer_settings(method, seed)
    suffix = checked_suffix(request.suffix)
    for param in ("training_file", "validation_file"):
        if (file := getattr(request, param)) is not None:
            await find_file(raw_request, file, param, "fine-tune")
    start: dict[str, Any] = {"base": request.model}
    task = method.modiste.task
    if (version := await _version(raw_request, request.model)) is not None:
        task = version.manifest.task
        settings = {**settings_of(version, method), **settings, "task": task}
        parent = f"{version.name}@{version.digest}"
        start = {"base": version.manifest.base.name, "parent": parent}
    order = Order(
        project=current_project(), caller=current_caller(),
        model=request.model, training_file=request.training_file,
        validation_file=request.validation_file, suffix=suffix, seed=seed,
        method=method.to_json(), metadata=request.metadata,
        trainer={
            **start, "recipe": method.modiste.recipe or TASK_RECIPES[task],
            "settings": settings, "promote": method.modiste.promote,
        },
    )  # fmt: skip
    job = await asyncio.to_thread(_jobs(raw_request).create, order)
    return JSONResponse(describe_job(job))


@router.get("/v1/fine_tuning/jobs", responses=answers(Listing[FineTuningJob]))
async def list_jobs(raw_request: Request, page: Annotated[Page, Query()]) -> JSONResponse:
    """The project's jobs, the last first; `metadata[key]=value` filters."""
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in raw_request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if odd := next((key for key in wanted if not _METADATA_KEY.fullmatch(key)), None):
        raise BadRequest(
            f"metadata: {odd[:64]!r} is no key to look for", param="metadata",
            hint="give letters, digits, spaces and . _ -",
        )  # fmt: skip
    jobs, more = await asyncio.to_thread(
        _jobs(raw_request).page, current_project(), after=page.after, limit=page.limit,
        metadata=wanted or None,
    )  # fmt: skip
    return JSONResponse(listing([describe_job(job) for job in jobs], more=more))


@router.get("/v1/fine_tuning/jobs/{job_id}", responses=answers(FineTuningJob))
async def retrieve_job(job_id: str, raw_request: Request) -> JSONResponse:
    """How far a job is."""
    job = await asyncio.to_thread(_jobs(raw_request).find, job_id, current_project())
    return JSONResponse(describe_job(job))


@router.post("/v1/fine_tuning/jobs/{job_id}/cancel", responses=answers(FineTuningJob))
async def cancel_job(job_id: str, raw_request: Request) -> JSONResponse:
    """End a job; one that is at work ends within a step."""
    job = await asyncio.to_thread(_jobs(raw_request).cancel, job_id, current_project())
    return JSONResponse(describe_job(job))


@router.post("/v1/fine_tuning/jobs/{job_id}/pause", responses=answers(FineTuningJob))
async def pause_job(job_id: str, raw_request: Request) -> JSONResponse:
    """Let a job rest; `resume` goes on from its last step."""
    job = await asyncio.to_thread(_jobs(raw_request).pause, job_id, current_project())
    return JSONResponse(describe_job(job))


@router.post("/v1/fine_tuning/jobs/{job_id}/resume", responses=answers(FineTuningJob))
async def resume_job(job_id: str, raw_request: Request) -> JSONResponse:
    """Let a paused job go on."""
    job = await asyncio.to_thread(_jobs(raw_request).resume, job_id, current_project())
    return JSONResponse(describe_job(job))


@router.get("/v1/fine_tuning/jobs/{job_id}/events", responses=answers(Listing[FineTuningJobEvent]))
async def list_events(
    job_id: str, raw_request: Request, page: Annotated[Page, Query()]
) -> JSONResponse:
    """What happened to a job, the last first."""
    events, more = await asyncio.to_thread(
        _jobs(raw_request).events, job_id, current_project(), after=page.after, limit=page.limit
    )
    return JSONResponse(listing([describe_event(event) for event in events], more=more))


@router.get(
    "/v1/fine_tuning/jobs/{job_id}/checkpoints",
    responses=answers(Listing[FineTuningJobCheckpoint]),
)
async def list_checkpoints(
    job_id: str, raw_request: Request, page: Annotated[CheckpointPage, Query()]
) -> JSONResponse:
    """Adapters from within a job, the last first; each can be asked as a model."""
    found, more = await asyncio.to_thread(
        _jobs(raw_request).checkpoints, job_id, current_project(), after=page.after,
        limit=page.limit,
    )  # fmt: skip
    return JSONResponse(listing([describe_checkpoint(one) for one in found], more=more))


def describe_job(job: JobRow) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job` object."""
    kind = job.method["type"]
    return {
        "object": "fine_tuning.job", "id": job.id, "created_at": seconds(job.created),
        "finished_at": seconds(job.finished), "estimated_finish": seconds(job.ends),
        "model": job.model, "fine_tuned_model": job.result, "organization_id": job.project,
        "status": job.status, "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [] if job.result_file is None else [job.result_file],
        "trained_tokens": job.trained_tokens, "seed": job.seed, "error": job.error,
        "hyperparameters": job.method[kind]["hyperparameters"], "method": job.method,
        "metadata": job.labels, "integrations": [], "user_provided_suffix": job.suffix,
    }  # fmt: skip


def describe_event(event: JobEventRow) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.event` object."""
    return {
        "object": "fine_tuning.job.event", "id": event.id, "created_at": seconds(event.created),
        "level": event.level, "message": event.message, "type": event.type,
        "data": event.data or {},
    }  # fmt: skip


def describe_checkpoint(checkpoint: CheckpointRow) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.checkpoint` object."""
    return {
        "object": "fine_tuning.job.checkpoint", "id": checkpoint.id,
        "created_at": seconds(checkpoint.created), "fine_tuning_job_id": checkpoint.job,
        "fine_tuned_model_checkpoint": checkpoint.model, "step_number": checkpoint.step,
        "metrics": checkpoint.metrics,
    }  # fmt: skip


async def _version(raw_request: Request, model: str) -> Version | None:
    """The version that a job goes on from; None: it begins with a base model.

    Raises:
        BadRequest: there is neither.
    """
    registry: Registry = raw_request.app.state.modiste.registry
    bases = await asyncio.to_thread(registry.bases)
    if model in (base.name for base in bases):
        return None
    try:
        version = await asyncio.to_thread(registry.find, model)
        check_ready(version)
    except AdapterError:
        version = None
    if version is None or version.manifest.project != current_project():
        known = ", ".join(base.name for base in bases) or "none"
        raise BadRequest(
            f"model: {model[:120]!r} is neither a base model nor a version of this project",
            param="model", hint=f"base models are: {known}", code="model_not_found",
        )  # fmt: skip
    return version


def _jobs(raw_request: Request) -> Jobs:
    jobs: Jobs = raw_request.app.state.modiste.jobs
    return jobs
