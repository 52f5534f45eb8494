"""Lets requests in until the server ends; inside the edge, so that refusals are counted there."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ending import Ending
from service.errors import NotReady, from_service
from service.record import RECORD
from service.scopes import PUBLIC

RETRY_AFTER_S = 5
"""What another server, or this one's successor, may need to be found."""
HINT = "try again, at another server if there is one"


class Door:
    """Refuses requests once the end has begun, and counts those that it let in.

    Probes and scrapers always pass, and so do the server's own requests: who asks them is told.
    """

    def __init__(self, app: ASGIApp, ending: Ending) -> None:
        self._app, self._ending = app, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or RECORD in scope or scope["path"] in PUBLIC:
            await self._app(scope, receive, send)
            return
        if self._ending.begun:
            await _refuse(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if self._ending.begun and message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        self._ending.enter()
        try:
            await self._app(scope, receive, answer)
        finally:
            self._ending.leave()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    why = NotReady("the server is shutting down", hint=HINT, code="shutting_down")
    response = from_service(why)
    response.headers["retry-after"] = str(RETRY_AFTER_S)
    response.headers["connection"] = "close"
    await response(scope, receive, send)
