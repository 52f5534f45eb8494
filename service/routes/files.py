"""OpenAI's files and uploads: kept for the caller's project, unseen by others."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from openai.types import FileDeleted
from openai.types.uploads import UploadPart
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from adapters.errors import AdapterError
from adapters.registry import Registry
from service.children import Children
from service.documents import FileObject, Listing, Upload, answers, form
from service.errors import BadRequest, FileNotFound
from service.file_checks import check_lines, checked
from service.files import UPLOADED, About, File, Files
from service.objects import ExpiresAfter, listing
from service.record import current_project, current_record
from service.routes.file_fields import EXPIRES, MAX_FILENAME, expiry_of, filename_of, purpose_of
from service.scopes import check_purpose, purposes
from service.scratch import scratch
from service.uploads import MOST_BYTES, PART_BYTES, Uploads
from service.uses import USES

logger = logging.getLogger("modiste.files")

router = APIRouter()

UPLOAD = "/v1/files"
PART = "/v1/uploads/{upload_id}/parts"
FORM_BYTES = 2**20
"""What a form may have around its file."""
_IN_PROCESS_BYTES = 2**20
"""Smaller files are checked by the server itself: a process would take longer to start."""
_EXPIRE_EVERY_S = 60.0
_THREADS = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cabinet:
    """What the routes of files need, as part of `app.state.modiste`."""

    files: Files
    uploads: Uploads
    most_bytes: int
    """Of one file that is uploaded whole."""
    threads: ThreadPoolExecutor
    """Of their own: slow disks and stores must not keep leases and keys from being followed."""

    @classmethod
    def open(cls, registry: Registry, most_bytes: int) -> Self:
        """The files of an installation."""
        files = Files(registry.database, registry.home, USES)
        threads = ThreadPoolExecutor(_THREADS, "modiste-files")
        return cls(files, Uploads(registry.database, files), most_bytes, threads)

    async def in_thread(self, work: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Do what takes its time, beside the event loop."""
        call = partial(copy_context().run, work, *arguments, **more)
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def keep_expiring(self) -> None:
        """Remove what has expired, again and again."""
        while True:
            for expire in (self.uploads.expire, self.files.expire):
                try:
                    await self.in_thread(expire)
                except AdapterError as error:
                    logger.warning("what has expired is removed later: %s", error)
                except Exception:  # the loop must outlive any one failure
                    logger.exception("what has expired is not removed")
            await asyncio.sleep(_EXPIRE_EVERY_S)


@router.post(
    UPLOAD,
    responses=answers(FileObject),
    openapi_extra=form(
        "file",
        **{
            "purpose": {"type": "string", "enum": list(UPLOADED)},
            "expires_after[anchor]": {"const": "created_at", "x-optional": True},
            "expires_after[seconds]": {"type": "integer", "x-optional": True},
        },
    ),
)
async def create_file(raw_request: Request) -> JSONResponse:
    """Keep a file: multipart with `file`, `purpose` and maybe `expires_after`."""
    cabinet = _cabinet(raw_request)
    async with _form(raw_request, {"file", "purpose"}, "file") as form:
        content = _content(form, "file")
        about = About(
            current_project(),
            filename_of(content.filename),
            purpose_of(form.get("purpose")),
            expiry_of(form),
        )
        look = checked(about.filename, about.purpose)
        async with _on_disk(content, cabinet) as place:
            if look:
                await _check(raw_request, place, about.purpose)
            file = await cabinet.in_thread(cabinet.files.add, place, about)
    return JSONResponse(file.to_json())


class Page(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = Field(default=None, max_length=200)
    limit: int = Field(default=10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = Field(default=None, max_length=64)


@router.get(UPLOAD, responses=answers(Listing[FileObject]))
async def list_files(raw_request: Request, page: Annotated[Page, Query()]) -> JSONResponse:
    """The project's files, the last first."""
    files, more = await asyncio.to_thread(
        _cabinet(raw_request).files.page, current_project(),
        purposes=purposes(page.purpose), after=page.after, limit=page.limit,
        rising=page.order == "asc",
    )  # fmt: skip
    return JSONResponse(listing([file.to_json() for file in files], more=more))


@router.get("/v1/files/{file_id}", responses=answers(FileObject))
async def retrieve_file(file_id: str, raw_request: Request) -> JSONResponse:
    """What is known of a file."""
    file = await _own_file(raw_request, file_id)
    return JSONResponse(file.to_json())


@router.delete("/v1/files/{file_id}", responses=answers(FileDeleted))
async def delete_file(file_id: str, raw_request: Request) -> JSONResponse:
    """Remove a file, unless a job or batch that has not ended needs it."""
    cabinet = _cabinet(raw_request)
    await _own_file(raw_request, file_id)
    await cabinet.in_thread(cabinet.files.delete, file_id, current_project())
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
async def file_content(file_id: str, raw_request: Request) -> FileResponse:
    """A file's bytes, as they were uploaded or written."""
    cabinet = _cabinet(raw_request)
    file = await _own_file(raw_request, file_id)
    with ExitStack() as stack:
        place = await cabinet.in_thread(stack.enter_context, cabinet.files.content(file))
        if (record := current_record()) is not None:
            record.on_end.append(stack.pop_all().close)
        return FileResponse(
            place, media_type="application/octet-stream", filename=file.filename,
            stat_result=await asyncio.to_thread(place.stat),
        )  # fmt: skip


class NewUpload(BaseModel):
    """A file that will come in parts."""

    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(ge=1, le=MOST_BYTES)
    filename: str = Field(min_length=1, max_length=MAX_FILENAME)
    mime_type: str = Field(max_length=200)
    purpose: str
    expires_after: ExpiresAfter | None = None


@router.post("/v1/uploads", responses=answers(Upload))
async def create_upload(request: NewUpload, raw_request: Request) -> JSONResponse:
    """Begin a file in parts; it must be completed within an hour."""
    seconds = None if request.expires_after is None else request.expires_after.seconds
    about = About(
        current_project(), filename_of(request.filename), purpose_of(request.purpose), seconds
    )
    checked(about.filename, about.purpose)
    uploads = _cabinet(raw_request).uploads
    upload = await asyncio.to_thread(uploads.create, about, request.bytes)
    return JSONResponse(upload.to_json())


@router.post(PART, responses=answers(UploadPart), openapi_extra=form("data"))
async def add_part(upload_id: str, raw_request: Request) -> JSONResponse:
    """Send a part: multipart with `data`, 64 MiB at most."""
    cabinet = _cabinet(raw_request)
    await _own_upload(raw_request, upload_id)
    async with (
        _form(raw_request, {"data"}, "data") as form,
        _on_disk(_content(form, "data"), cabinet, PART_BYTES) as place,
    ):
        part = await cabinet.in_thread(
            cabinet.uploads.add_part, upload_id, current_project(), place
        )
    return JSONResponse(part)


class Completion(BaseModel):
    """The parts in their order."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[str] = Field(min_length=1, max_length=10_000)
    md5: str | None = Field(default=None, pattern="^[0-9a-fA-F]{32}$")


@router.post("/v1/uploads/{upload_id}/complete", responses=answers(Upload))
async def complete_upload(
    upload_id: str, request: Completion, raw_request: Request
) -> JSONResponse:
    """Make the file of its parts."""
    cabinet = _cabinet(raw_request)
    await _own_upload(raw_request, upload_id)
    project = current_project()
    with ExitStack() as stack:
        joined = cabinet.uploads.joined(upload_id, project, request.part_ids)
        whole, about = await cabinet.in_thread(stack.enter_context, joined)
        if request.md5 is not None:
            await cabinet.in_thread(_check_md5, whole, request.md5)
        if checked(about.filename, about.purpose):
            await _check(raw_request, whole, about.purpose)
        upload = await cabinet.in_thread(cabinet.uploads.complete, upload_id, project, whole)
    return JSONResponse(upload.to_json())


@router.post("/v1/uploads/{upload_id}/cancel", responses=answers(Upload))
async def cancel_upload(upload_id: str, raw_request: Request) -> JSONResponse:
    """End an upload without a file."""
    await _own_upload(raw_request, upload_id)
    uploads = _cabinet(raw_request).uploads
    upload = await asyncio.to_thread(uploads.cancel, upload_id, current_project())
    return JSONResponse(upload.to_json())


async def _own_file(raw_request: Request, id_: str) -> File:
    """A file of the caller's project that its key may use.

    Raises:
        FileNotFound: there is none.
        PermissionDenied: its purpose is for other keys.
    """
    files = _cabinet(raw_request).files
    file = await asyncio.to_thread(files.find, id_, current_project())
    check_purpose(file.purpose, "file_id")
    return file


async def _own_upload(raw_request: Request, id_: str) -> None:
    """Let pass an upload of the caller's project that its key may use.

    Raises:
        UploadNotFound, BadRequest: there is none, or it has ended.
        PermissionDenied: its purpose is for other keys.
    """
    uploads = _cabinet(raw_request).uploads
    about = await asyncio.to_thread(uploads.about, id_, current_project())
    check_purpose(about.purpose, "upload_id")


async def find_file(raw_request: Request, id_: str, param: str, purpose: str) -> File:
    """A file of the caller's project that a field of a request names.

    Raises:
        BadRequest: there is none, or it is for another purpose.
    """
    files = _cabinet(raw_request).files
    try:
        file = await asyncio.to_thread(files.find, id_, current_project(), param)
    except FileNotFound as error:
        raise BadRequest(error.message, param=param, hint=error.hint, code=error.code) from error
    if file.purpose != purpose:
        raise BadRequest(
            f"{param}: {id_} has the purpose {file.purpose}", param=param,
            hint=f"upload it with the purpose {purpose}", code="wrong_purpose",
        )  # fmt: skip
    return file


def _cabinet(raw_request: Request) -> Cabinet:
    cabinet: Cabinet = raw_request.app.state.modiste.cabinet
    return cabinet


@asynccontextmanager
async def _form(raw_request: Request, known: set[str], file: str) -> AsyncIterator[FormData]:
    """The parsed multipart body; its file waits on the disk."""
    kind = raw_request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise BadRequest(
            f"the body is {kind[:60] or 'of no type'}, not multipart/form-data",
            hint=f"send a form with {file}", param=file,
        )  # fmt: skip
    try:
        async with raw_request.form(max_files=1, max_fields=8) as form:
            for name in form:
                if name not in known and not (file == "file" and EXPIRES.fullmatch(name)):
                    raise BadRequest(
                        f"{name[:60]}: unknown field", param=name[:60],
                        hint=f"known are {', '.join(sorted(known))}",
                    )  # fmt: skip
            yield form
    except ClientDisconnect:
        raise BadRequest("the upload was cut off", hint="send it again", param=file) from None


def _content(form: FormData, name: str) -> UploadFile:
    content = form.get(name)
    if not isinstance(content, UploadFile):
        raise BadRequest(
            f"{name} is missing" if content is None else f"{name} is no file",
            param=name, code="missing_field" if content is None else None,
            hint=f"send the content as a form's file under the name {name}",
        )  # fmt: skip
    return content


@asynccontextmanager
async def _on_disk(
    content: UploadFile, cabinet: Cabinet, most: int | None = None
) -> AsyncIterator[Path]:
    """The content as a file of its own, not too long and not empty."""
    size = content.size or 0
    if size == 0:
        raise BadRequest("the file is empty", param="file", hint="send its content")
    most = cabinet.most_bytes if most is None else min(most, cabinet.most_bytes)
    if size > most:
        raise BadRequest(
            f"the file has {size} bytes, more than {most}", param="file",
            hint="send it in parts by /v1/uploads, or raise max_file_bytes", code="file_too_large",
        )  # fmt: skip
    with scratch(cabinet.files.scratch) as folder:
        place = folder / "content"
        await cabinet.in_thread(_copy, content, place)
        yield place


def _copy(content: UploadFile, place: Path) -> None:
    content.file.seek(0)
    with place.open("wb") as file:
        shutil.copyfileobj(content.file, file, 2**20)


async def _check(raw_request: Request, place: Path, purpose: str) -> None:
    size = (await asyncio.to_thread(place.stat)).st_size
    if size <= _IN_PROCESS_BYTES:
        await _cabinet(raw_request).in_thread(check_lines, place, purpose)
        return
    children: Children = raw_request.app.state.modiste.children
    await children.run("service.file_checks", str(place), purpose)


def _check_md5(place: Path, said: str) -> None:
    with place.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != said.lower():
        raise BadRequest(
            f"md5: the parts together have {found}", param="md5",
            hint="a part was altered on its way, or their order is another: send them again",
        )  # fmt: skip
