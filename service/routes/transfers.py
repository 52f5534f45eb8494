"""Versions that travel over HTTP, as the tars that `modiste adapters export` writes."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from adapters.archive import unpack
from adapters.names import parse_reference
from adapters.prompt import Task
from adapters.registry import Registry, Version
from adapters.store import MANIFEST
from adapters.transfer import export, import_own
from service.children import Children
from service.errors import BadRequest
from service.record import current_project, current_record
from service.routes.adapters import describe, own_adapter

UPLOAD = "/v1/adapters/import"

router = APIRouter()


@router.get("/v1/adapters/{name}/versions/{version}/export", dependencies=[Depends(own_adapter)])
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


class About(BaseModel):
    """What the uploaded tar doesn't say itself; all but the first two only of what peft saved."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(default=None, max_length=64)
    project: str | None = Field(default=None, max_length=64)
    task: Task | None = None
    base: str | None = Field(default=None, max_length=64)
    source_lang: str | None = Field(default=None, max_length=64)
    target_lang: str | None = Field(default=None, max_length=64)
    labels: str | None = Field(default=None, max_length=4096, description="with commas between")

    def options(self) -> list[str]:
        """As the command line has them."""
        given = self.model_dump(exclude_none=True)
        return [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]


@router.post(UPLOAD)
async def import_version(raw_request: Request, about: Annotated[About, Query()]) -> JSONResponse:
    """Publish an export, or a LoRA that peft saved; the body is its tar, streamed to disk.

    What peft saved is compared with its base and probed by a child process, which takes its time.
    Equal content is the same version.

    Raises:
        BadRequest: the body ended too early; or what the child refused.
        AdapterError: altered, unsafe, or for a base that is not here.
    """
    registry: Registry = raw_request.app.state.modiste.registry
    children: Children = raw_request.app.state.modiste.children
    about = _of_the_caller(about)
    with registry.store.scratch() as folder:
        place = folder / "upload.tar"
        with registry.store.writing(), place.open("wb") as file:
            try:
                async for piece in raw_request.stream():
                    await asyncio.to_thread(file.write, piece)
            except ClientDisconnect:
                raise BadRequest("the upload was cut off", hint="send it again") from None
        unpacked = folder / "unpacked"
        await asyncio.to_thread(unpack, place, unpacked)
        if (unpacked / MANIFEST).exists():
            version = await asyncio.to_thread(_publish_export, registry, unpacked, about)
        else:
            version = await _publish_foreign(registry, children, unpacked, about)
    warnings = await asyncio.to_thread(registry.misfits, version)
    return JSONResponse({**describe(version), "warnings": warnings}, status_code=201)


def _of_the_caller(about: About) -> About:
    """What is published is the caller's project's, whatever an export says."""
    own = current_project()
    if about.project not in (None, own):
        raise BadRequest(
            f"project: {about.project!r} is not yours", param="project",
            hint=f"leave it out; your key is of project {own}", code="wrong_project",
        )  # fmt: skip
    return about.model_copy(update={"project": own})


def _publish_export(registry: Registry, folder: Path, about: About) -> Version:
    if meaningless := about.model_fields_set - {"name", "project"}:
        first = min(meaningless)
        raise BadRequest(
            f"{first} means nothing for an export, which says itself what it is for",
            param=first, hint=f"leave out {first}",
        )  # fmt: skip
    return import_own(registry, folder, name=about.name, project=about.project)


async def _publish_foreign(
    registry: Registry, children: Children, folder: Path, about: About
) -> Version:
    if about.name is None:
        raise BadRequest(
            f"the tar has no {MANIFEST}, so name is missing", param="name", code="missing_field",
            hint="add ?name=NAME for what peft saved",
        )  # fmt: skip
    made = await children.run(
        "finetune.imports", str(folder), *about.options(), f"--home={registry.home.root}"
    )
    return await asyncio.to_thread(registry.find, str(made["version"]))


class Merge(BaseModel):
    """Which versions are merged, and how; as `modiste adapters merge` has it."""

    model_config = ConfigDict(extra="forbid")

    parents: list[str] = Field(min_length=2, max_length=16)
    into: str = Field(min_length=1, max_length=64)
    method: str | None = Field(default=None, max_length=64)
    weights: list[float] | None = Field(default=None, max_length=16)
    density: float | None = None
    seed: int | None = None
    rank: int | None = None
    prompt_from: str | None = Field(default=None, max_length=200)

    def options(self) -> list[str]:
        """As the command line has them."""
        given = self.model_dump(exclude_none=True, exclude={"parents"})
        if self.weights is not None:
            given["weights"] = ",".join(map(repr, self.weights))
        return [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]


@router.post("/v1/adapters/merge")
async def merge(request: Merge, raw_request: Request) -> JSONResponse:
    """Make one version of several; answers once a child process has published it."""
    registry: Registry = raw_request.app.state.modiste.registry
    models = raw_request.app.state.modiste.models
    for parent in request.parents:
        await models.check_own(parse_reference(parent).name, parent)
        await asyncio.to_thread(registry.find, parent)  # a reference, and no option
    made = await raw_request.app.state.modiste.children.run(
        "finetune.merge", *request.parents, *request.options(), f"--home={registry.home.root}"
    )
    version = await asyncio.to_thread(registry.find, str(made["version"]))
    warnings = await asyncio.to_thread(registry.misfits, version)
    return JSONResponse({**describe(version), "warnings": warnings}, status_code=201)
