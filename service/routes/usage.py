"""What the caller's project used."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from service.errors import BadRequest
from service.objects import LATEST, listing, no_such_cursor
from service.record import current_project
from service.usage import GROUPS, Sum, Usage

router = APIRouter()

_DAYS = 7
_MOST_DAYS = 3660
_DAY_S = 86_400
"""Of Unix time, which knows no leap seconds; the last day of all has no next one."""
_NAMES = {"project_id": "project", "api_key_id": "key"}
"""OpenAI's words for two of our groups."""


class Asked(BaseModel):
    """Which days, in which parts; `group_by` may come several times and is read apart."""

    model_config = ConfigDict(extra="ignore")

    days: int | None = Field(default=None, ge=1, le=_MOST_DAYS)
    start_time: int | None = Field(default=None, ge=0, le=LATEST)
    end_time: int | None = Field(default=None, ge=1, le=LATEST)
    after: str | None = Field(default=None, max_length=200)
    limit: int = Field(default=31, ge=1, le=366)


class Span(NamedTuple):
    """Whole days in UTC, both included."""

    first: date
    last: date

    @property
    def id(self) -> str:
        first = self.first.isoformat()
        return first if self.first == self.last else f"{first}/{self.last.isoformat()}"


@router.get("/v1/usage")
async def usage(raw_request: Request, asked: Annotated[Asked, Query()]) -> JSONResponse:
    """The project's requests and tokens, the last day first.

    Buckets, results and the names of their fields are those of OpenAI's usage API
    (`/v1/organization/usage/completions`: `start_time`, `end_time`, `group_by`, `input_tokens`,
    `num_model_requests`, …), with `route` and `num_failed_requests` added. Otherwise than there
    buckets are days alone, and `day` is one of the groups; pages go by `after` and `limit`.
    """
    by = _groups(raw_request)
    whole = _span(asked, datetime.now(UTC).date())
    spans = _days(whole) if "day" in by else [whole]
    page, more = _page(spans, asked)
    found: list[Sum] = []
    if page:
        kept: Usage = raw_request.app.state.modiste.usage
        found = await asyncio.to_thread(
            kept.sums, page[-1].first, page[0].last, by, current_project()
        )
    return JSONResponse(listing([_bucket(span, found) for span in page], more=more))


def _groups(raw_request: Request) -> list[str]:
    """Names of GROUPS in their order; `day` where none is given."""
    query = raw_request.query_params
    given = [*query.getlist("group_by"), *query.getlist("group_by[]")]
    names = {_NAMES.get(name, name) for text in given for name in text.split(",")}
    if unknown := sorted(names - GROUPS.keys()):
        raise BadRequest(
            f"group_by: {unknown[0][:60]!r} is not known", param="group_by",
            hint=f"known are {', '.join(GROUPS)}",
        )  # fmt: skip
    return [name for name in GROUPS if name in (names or {"day"})]


def _span(asked: Asked, today: date) -> Span:
    """The days that are asked about; one that is only touched counts whole."""
    if asked.days is not None and (asked.start_time, asked.end_time) != (None, None):
        raise BadRequest(
            "days and a time are both given", param="days", hint="give days, or start_time"
        )
    last = today if asked.end_time is None else _day(asked.end_time - 1)
    if asked.start_time is None:
        days = timedelta(days=(asked.days or _DAYS) - 1)
        return Span(max(last, date.min + days) - days, last)
    first = _day(asked.start_time)
    if asked.end_time is not None and asked.end_time <= asked.start_time:
        raise BadRequest(
            "end_time is not after start_time", param="end_time", hint="both are seconds since 1970"
        )
    if (last - first).days >= _MOST_DAYS:
        raise BadRequest(
            f"these are over {_MOST_DAYS} days", param="start_time", hint="ask for fewer at once"
        )
    return Span(first, last)


def _days(whole: Span) -> list[Span]:
    count = (whole.last - whole.first).days + 1
    days = (whole.last - timedelta(days=number) for number in range(count))
    return [Span(day, day) for day in days]


def _page(spans: list[Span], asked: Asked) -> tuple[list[Span], bool]:
    begin = 0
    if asked.after is not None:
        ids = [span.id for span in spans]
        if asked.after not in ids:
            raise no_such_cursor(asked.after)
        begin = ids.index(asked.after) + 1
    return spans[begin : begin + asked.limit], len(spans) > begin + asked.limit


def _bucket(span: Span, found: Iterable[Sum]) -> dict[str, Any]:
    """OpenAI's `bucket`: what was used on these days."""
    return {
        "object": "bucket", "id": span.id, "start_time": _seconds(span.first),
        "end_time": _seconds(span.last) + _DAY_S,
        "results": [
            describe_sum(one) for one in found if one.group.get("day", span.first) == span.first
        ],
    }  # fmt: skip


def describe_sum(one: Sum) -> dict[str, Any]:
    """OpenAI's result of a bucket; what was not grouped by is null."""
    counts, group = one.counts, one.group
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": counts.prompt_tokens, "input_cached_tokens": counts.cached_tokens,
        "output_tokens": counts.completion_tokens, "num_model_requests": counts.requests,
        "num_failed_requests": counts.failed, "project_id": group.get("project"),
        "api_key_id": group.get("key"), "model": group.get("model"), "route": group.get("route"),
    }  # fmt: skip


def _day(seconds: int) -> date:
    return datetime.fromtimestamp(seconds, UTC).date()


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
