"""What a JSON body may be, whatever its route makes of it.

FastAPI has parsed the body when these dependencies are solved, and its type is checked after
them; Starlette keeps what was parsed, and so does `parse_once` for what needs it before.
"""

import json
import math
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from service.errors import BadRequest, UnsupportedMedia
from service.heap import HEAP

MAX_DEPTH = 100
"""Levels of objects and lists: those of a schema, which vLLM bounds, and what stands around it."""
MAX_VALUES = 2**20
"""Items and keys together; walking them takes a fifth of a second."""
_INT64 = 2**63

PARSED = "modiste.parsed"
"""Key of a request's ASGI scope: its body, as JSON."""

Path = tuple[Any, ...]
"""A place: its parent's path and its own key; () is the body itself."""


def parse_once(scope: MutableMapping[str, Any], body: bytes) -> Any:
    """A whole body as JSON, which `JsonRoute` then has; None: it is none, as its route will say."""
    try:
        scope[PARSED] = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return scope[PARSED]


class JsonRoute(APIRoute):
    """A route whose body is not parsed again when that was done before."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            if PARSED in request.scope:
                request._json = request.scope[PARSED]  # where Starlette keeps it
            return await handle(request)

        return handle_parsed


async def json_body(raw_request: Request) -> Any:
    """The parsed body; None where there is none, or where its route tells what is wrong with it.

    Raises:
        UnsupportedMedia: the body is not said to be JSON.
        BadRequest: it is nested too deeply, has too many values, or one that no field can hold.
    """
    if not (raw := await raw_request.body()):
        return None
    HEAP.note(len(raw))
    media = raw_request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not (
        media.startswith("application/") and media.endswith("+json")
    ):
        raise UnsupportedMedia(
            f"content-type is {media[:80]!r}" if media else "the request has no content-type",
            hint="send JSON with `content-type: application/json`",
        )
    try:
        body = await raw_request.json()
    except (ValueError, RecursionError):
        return None  # of a route without a body; FastAPI tells the others
    check_json(body)
    return body


async def _checked(raw_request: Request) -> None:
    await json_body(raw_request)


CHECKED = Depends(_checked)
"""For routers whose bodies are JSON."""


def check_json(body: Any) -> None:
    """Raises BadRequest: nested too deeply, too many values, or one that no field can hold."""
    pending: list[tuple[Any, int, Path]] = [(body, 1, ())]
    seen = 0
    while pending:
        value, depth, path = pending.pop()
        if depth > MAX_DEPTH:
            raise BadRequest(
                f"the body is nested over {MAX_DEPTH} levels deep", param=_told(path) or None,
                hint=f"at most {MAX_DEPTH} levels of objects and lists",
            )  # fmt: skip
        seen += len(value) if isinstance(value, dict | list) else 1
        if seen > MAX_VALUES:
            raise BadRequest(
                f"the body has over {MAX_VALUES} values", hint="send it in several requests"
            )
        for key, item in _items(value):
            if isinstance(key, str):
                _check_value(key, path)
            if isinstance(item, dict | list):
                pending.append((item, depth + 1, (path, key)))
            else:
                _check_value(item, (path, key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else [("", value)]


def _check_value(value: Any, path: Path) -> None:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # a lone surrogate, as "\\ud800" in JSON
                raise _wrong(path, "must be valid Unicode") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _wrong(path, "must be a finite number")
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise _wrong(path, "is beyond 64 bits")


def _wrong(path: Path, what: str) -> BadRequest:
    param = _told(path)
    return BadRequest(f"{param or 'the body'} {what}", param=param or None, hint="correct it")


def _told(path: Path) -> str:
    keys: list[str] = []
    while path:
        path, key = path
        keys.append(str(key)[:80].encode("ascii", "replace").decode())
    return ".".join(filter(None, reversed(keys[:8])))
