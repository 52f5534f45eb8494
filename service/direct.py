"""Routes whose sound requests are read without FastAPI's machinery, which is for all others.

FastAPI solves a route's dependencies anew for each request, and goes through its body twice. Here
the checks and the type are known beforehand. What they refuse is read once more by FastAPI, so that
there is one way to tell it.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import TypeAdapter, ValidationError

from service.body import JsonRoute, json_body
from service.fields import Table
from service.guard import check_body

Handler = TypeVar("Handler", bound=Callable[..., Any])

_READ = "_reads"


def reads(table: Table, kind: Any) -> Callable[[Handler], Handler]:
    """For a handler of `request`, of that kind, and `raw_request`; its route has the same checks as
    dependencies."""

    def mark(handler: Handler) -> Handler:
        setattr(handler, _READ, (table, TypeAdapter(kind)))
        return handler

    return mark


class DirectRoute(JsonRoute):
    """A route whose handler may be marked with `reads`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        usual, endpoint = super().get_route_handler(), self.endpoint
        marked: tuple[Table, TypeAdapter[Any]] | None = getattr(endpoint, _READ, None)
        if marked is None:
            return usual
        table, kind = marked

        async def handle(raw_request: Request) -> Response:
            body = await json_body(raw_request)
            if not isinstance(body, dict):
                return await usual(raw_request)
            await check_body(body, table, raw_request.app.state.modiste)
            try:
                request = kind.validate_python(dict(body))  # vLLM changes what it reads
            except ValidationError:
                return await usual(raw_request)
            answer: Response | None = await endpoint(request=request, raw_request=raw_request)
            return Response() if answer is None else answer  # nobody reads it

        return handle
