"""Versions that travel over HTTP, as the tars that `modiste adapters export` writes."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import ClientDisconnect

from adapters.archive import unpack
from adapters.errors import IncompatibleAdapter
from adapters.registry import Registry, Version
from adapters.store import MANIFEST
from adapters.transfer import export, import_own
from service.errors import BadRequest
from service.record import current_record
from service.routes.adapters import describe

UPLOAD = "/v1/adapters/import"

router = APIRouter()


@router.get("/v1/adapters/{name}/versions/{version}/export")
async def export_version(name: str, version: int, raw_request: Request) -> FileResponse:
    """A whole version as a tar, verified first; equal versions give equal bytes."""
    registry: Registry = raw_request.app.state.modiste.registry
    with ExitStack() as stack:
        folder = stack.enter_context(registry.store.scratch())
        place = folder / f"{name}-{version}.tar"
        await asyncio.to_thread(export, registry, f"{name}@{version}", place)
        if (record := current_record()) is not None:
            record.on_end.append(stack.pop_all().close)
        return FileResponse(place, media_type="application/x-tar", filename=place.name)


@router.post(UPLOAD)
async def import_version(
    raw_request: Request,
    name: Annotated[str | None, Query(max_length=64)] = None,
    project: Annotated[str | None, Query(max_length=64)] = None,
) -> JSONResponse:
    """Publish an export; the body is its tar, streamed to disk. Equal content is the same version.

    Raises:
        BadRequest: the body ended too early.
        AdapterError: not an export, altered, unsafe, or for a base that is not here.
    """
    registry: Registry = raw_request.app.state.modiste.registry
    with registry.store.scratch() as folder:
        place = folder / "upload.tar"
        with registry.store.writing(), place.open("wb") as file:
            try:
                async for piece in raw_request.stream():
                    await asyncio.to_thread(file.write, piece)
            except ClientDisconnect:
                raise BadRequest("the upload was cut off", hint="send it again") from None
        version = await asyncio.to_thread(_publish, registry, place, name, project)
    warnings = await asyncio.to_thread(registry.misfits, version)
    return JSONResponse({**describe(version), "warnings": warnings}, status_code=201)


def _publish(registry: Registry, tar: Path, name: str | None, project: str | None) -> Version:
    folder = tar.with_name("unpacked")
    unpack(tar, folder)
    if not (folder / MANIFEST).exists():
        raise IncompatibleAdapter(
            f"the tar has no {MANIFEST}: it is not an export",
            hint="a LoRA that peft saved is compared with its base first: run "
            "`modiste adapters import` where the base is",
        )
    return import_own(registry, folder, name=name, project=project)
