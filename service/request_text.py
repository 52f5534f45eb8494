"""Keeps what a request says, for its line in the log; only there where that is switched on."""

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.record import Record, current_record
from service.redaction import LONGEST


class TextKeeper:
    """Stands between the edge and the routes, and copies bodies into the request's record."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = current_record()
        if scope["type"] != "http" or record is None or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        record.body = bytearray()
        await self._app(scope, _kept(receive, record), send)


def _is_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return any(kind.split(b";")[0].strip().lower() == b"application/json" for kind in kinds)


def _kept(receive: Receive, record: Record) -> Callable[[], Any]:
    async def kept() -> Message:
        message = await receive()
        body = record.body
        # one byte more than is logged says that there was more
        if message["type"] == "http.request" and body is not None and len(body) <= LONGEST:
            body += message.get("body", b"")[: LONGEST + 1 - len(body)]
        return message

    return kept
