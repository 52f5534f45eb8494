"""Routes whose sound requests are read without FastAPI's machinery, which is for all others.

FastAPI solves a route's dependencies anew for each request, and goes through its body twice. Here
the checks and the type are known beforehand. What they refuse is read once more by FastAPI, so that
there is one way to tell it.
"""

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from pydantic import TypeAdapter, ValidationError

from service.body import JsonRoute, json_body
from service.guard import check_body, table_of


class DirectRoute(JsonRoute):
    """A route that is `guarded`, and whose handler takes its body as `request` and `raw_request`,
    no more."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        usual, endpoint = super().get_route_handler(), self.endpoint
        table = table_of(self.dependencies)
        kind = TypeAdapter(get_type_hints(endpoint, include_extras=True)["request"])

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
