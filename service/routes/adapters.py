"""Adapters over HTTP: what there is, and promotion."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from adapters.names import PRODUCTION, check_alias
from adapters.registry import AdapterRecord, Version
from service.errors import BadRequest
from service.record import current_record

router = APIRouter()


class Promotion(BaseModel):
    """Which version an alias shall point at."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)
    alias: str = PRODUCTION
    why: str = Field(default="", max_length=1000)


def _adapter(record: AdapterRecord) -> dict[str, Any]:
    return {
        "object": "adapter", "name": record.name, "task": record.task, "project": record.project,
        "created": int(record.created.timestamp()), "versions": record.versions,
        "aliases": record.aliases,
    }  # fmt: skip


def _version(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "object": "adapter.version", "version": version.number, "reference": version.reference,
        "digest": version.digest, "state": version.state, "reason": version.reason or None,
        "created": int(manifest.created.timestamp()), "bytes": manifest.size,
        "languages": manifest.languages, "labels": manifest.labels, "base": manifest.base.name,
        "metrics": {name: metric.model_dump() for name, metric in manifest.metrics.items()},
    }  # fmt: skip


@router.get("/v1/adapters")
async def list_adapters(raw_request: Request) -> JSONResponse:
    """All adapters with their aliases."""
    records = await asyncio.to_thread(raw_request.app.state.modiste.registry.adapters)
    return JSONResponse({"object": "list", "data": [_adapter(record) for record in records]})


@router.get("/v1/adapters/{name}")
async def show_adapter(name: str, raw_request: Request) -> JSONResponse:
    """One adapter with its versions."""
    state = raw_request.app.state.modiste
    versions = await asyncio.to_thread(state.registry.versions, name)
    aliases = await asyncio.to_thread(state.registry.aliases, name)
    live = {a: v.number for (n, a), v in state.models.live().items() if n == name}
    return JSONResponse(
        {
            "object": "adapter", "name": name, "aliases": aliases, "served": live,
            "versions": [_version(version) for version in versions],
        }
    )  # fmt: skip


@router.post("/v1/adapters/{name}/promote")
async def promote(name: str, promotion: Promotion, raw_request: Request) -> JSONResponse:
    """Move an alias; answers once this server loaded and proved the version and serves it."""
    state = raw_request.app.state.modiste
    record = current_record()
    version = await asyncio.to_thread(state.registry.find, f"{name}@{promotion.version}")
    check_alias(promotion.alias)
    await state.residency.ensure(version)
    await asyncio.to_thread(
        state.registry.promote, version.reference, promotion.alias,
        who=record.caller if record is not None else "", why=promotion.why,
    )  # fmt: skip
    await state.models.catch_up()
    failure = state.models.failures().get((name, promotion.alias))
    if failure is not None:
        raise BadRequest(failure, param="version", code="not_served")
    return JSONResponse(_version(version))
