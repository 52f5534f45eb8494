"""What a body of OpenAI's routes passes before vLLM's types read it."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import Depends, Request

from service.body import json_body
from service.constraints import constraints
from service.fields import Table, check_fields
from service.request_limits import check_limits


def guarded(table: Table) -> Any:
    """A dependency: it speaks before the request's type does, which compiles some of what it has.

    Args:
        table: whose each field is.
    """

    async def guard(raw_request: Request) -> None:
        body = await json_body(raw_request)
        if isinstance(body, dict):
            await check_body(body, table, raw_request.app.state.modiste)

    guard.table = table  # type: ignore[attr-defined]
    return Depends(guard)


def table_of(dependencies: Sequence[Any]) -> Table:
    """The table of the one among a route's dependencies that guards it."""
    (table,) = (one.dependency.table for one in dependencies if hasattr(one.dependency, "table"))
    return cast("Table", table)


async def check_body(body: Mapping[str, Any], table: Table, modiste: Any) -> None:
    """Raises BadRequest: a field that is not the caller's, too much of something, or a schema that
    takes too long."""
    check_fields(body, table)
    check_limits(body, modiste.settings)
    await modiste.grammars.check(constraints(body, modiste.settings.max_schema_bytes))
