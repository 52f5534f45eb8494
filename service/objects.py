"""What OpenAI's objects and their lists have in common; an object's id is where a page begins."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from service.errors import BadRequest

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
"""What a caller attaches to an object."""


LEAST_S, MOST_S = 3600, 30 * 24 * 3600
"""Bounds of `expires_after`."""
LATEST = 253_402_300_799
"""Seconds since 1970 of the last year with four digits."""


class ExpiresAfter(BaseModel):
    """When a file goes by itself."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_S, le=MOST_S)


class Page(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = Field(default=None, max_length=200)
    limit: int = Field(default=20, ge=1, le=100)


def seconds(moment: datetime | None) -> int | None:
    """A time as OpenAI's objects have it: seconds since 1970."""
    return None if moment is None else int(moment.timestamp())


def page_of(
    session: Session,
    query: Select[Any],
    of: ColumnElement[bool],
    after: str | None,
    limit: int,
    *,
    rising: bool = False,
) -> tuple[list[Any], bool]:
    """Rows by their `number`, the last first, and whether more follow.

    Args:
        after: id of the last object of the page before.
        of: the condition that such an object must fulfil.
        rising: the first first.

    Raises:
        BadRequest: there is no such object.
    """
    table = query.column_descriptions[0]["entity"]
    if after is not None:
        number = session.scalar(select(table.number).where(table.id == after, of))
        if number is None:
            raise no_such_cursor(after)
        query = query.where(table.number > number if rising else table.number < number)
    order = table.number.asc() if rising else table.number.desc()
    rows = list(session.scalars(query.order_by(order).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def listing(objects: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """OpenAI's `list` object."""
    ids = [one["id"] for one in objects] or [None]
    return {
        "object": "list", "data": objects, "has_more": more,
        "first_id": ids[0], "last_id": ids[-1],
    }  # fmt: skip


def no_such_cursor(after: str) -> BadRequest:
    return BadRequest(
        f"after: there is no {after[:80]!r}", param="after",
        hint="give the last id of the page before, as it was listed",
    )  # fmt: skip
