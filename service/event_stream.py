"""Server-sent events as a response."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.callers import WhileThere

SEND = "modiste.send"
"""Key of a request's ASGI scope: `send` beneath all middleware, of which none reads a body."""


class EventStream(StreamingResponse):
    """As Starlette's, in fewer steps: its head goes with the first event, and events go straight to
    the connection. They end when the caller goes away."""

    def __init__(
        self, events: AsyncGenerator[str, None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        straight = scope.get(SEND, send)
        async with WhileThere(receive), aclosing(self._events):
            begun = False
            async for event in self._events:
                if not begun:
                    begun = True
                    await self._begin(send)
                body = {"type": "http.response.body", "body": event.encode(), "more_body": True}
                await straight(body)
            if not begun:
                await self._begin(send)
            await straight({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
