"""The audit log over HTTP: what was done to and by the caller's project."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from service.audit import AuditLog, Sought, describe_entry
from service.objects import LATEST, Page, listing
from service.record import current_project

router = APIRouter()


class Asked(Page):
    """Which entries, and which part of them."""

    since: int | None = Field(default=None, ge=0, le=LATEST, description="seconds since 1970")
    act: str | None = Field(default=None, max_length=64)
    who: str | None = Field(default=None, max_length=200)


@router.get("/v1/audit")
async def list_entries(raw_request: Request, asked: Annotated[Asked, Query()]) -> JSONResponse:
    """Admin acts on what the project has, and by its callers, the last first."""
    since = None if asked.since is None else datetime.fromtimestamp(asked.since, UTC)
    sought = Sought(since, asked.act, current_project(), asked.who)
    log = AuditLog(raw_request.app.state.modiste.registry.database)
    entries, more = await asyncio.to_thread(log.page, sought, after=asked.after, limit=asked.limit)
    return JSONResponse(listing([describe_entry(entry) for entry in entries], more=more))
