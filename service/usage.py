"""Who used what: requests and tokens by day, project, key, model and route.

Requests are added up in memory. Every few seconds the sums go to the database as one report, in
one transaction that adds them to what is there, so those of several servers meet. A report has a
number and is sent until it is known to be in; one that arrives twice, as when the connection broke
after the commit, is told by its number.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters.connect import Database
from adapters.errors import AdapterError, InvalidInput
from service.database import UsageReportRow, UsageRow
from service.record import Record

logger = logging.getLogger("modiste.usage")

EVERY_S = 5.0
MOST_LINES = 10_000
"""Sums in memory; beyond them keys and models are no longer told apart (each about 500 bytes)."""
OTHER = "(other)"
MOST_RESULTS = 10_000
"""Of one answer."""
_REPORTS_KEPT = timedelta(days=1)
"""No server sends a report that long."""


class Line(NamedTuple):
    """What requests are added up by."""

    day: date
    project: str
    caller: str
    model: str
    route: str


@dataclass(slots=True)
class Counts:
    """What was used; cached tokens are among the prompt's."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


GROUPS = {
    "day": UsageRow.day, "project": UsageRow.project, "key": UsageRow.caller,
    "model": UsageRow.model, "route": UsageRow.route,
}  # fmt: skip
"""What sums are told by, and its column."""
COUNTED = (
    UsageRow.requests, UsageRow.failed, UsageRow.prompt_tokens, UsageRow.cached_tokens,
    UsageRow.completion_tokens,
)  # fmt: skip
"""The columns of Counts."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What was used by a group: its values by their names, as in GROUPS."""

    group: dict[str, Any]
    counts: Counts


def _today() -> date:
    return datetime.now(UTC).date()


class Ledger:
    """The sums of one server process, until they are in the database."""

    def __init__(self, database: Database, today: Callable[[], date] = _today) -> None:
        self._database, self._today = database, today
        self._server = uuid4().hex
        self._lines: dict[Line, Counts] = {}
        self._report: dict[Line, Counts] = {}
        """Sent, and not known to be in the database."""
        self._number = 0

    def observe(self, record: Record) -> None:
        """Add a finished request, unless it was refused before it used anything."""
        used = record.prompt_tokens or record.completion_tokens
        failed = record.status >= 500 or (record.failed and record.status < 400)
        if record.model is None or not (used or failed or 200 <= record.status < 400):
            return
        line = Line(
            self._today(), record.project, record.caller, record.model.reference, record.route
        )
        if line not in self._lines and len(self._lines) >= MOST_LINES:
            line = line._replace(caller=OTHER, model=OTHER)
        counts = self._lines.setdefault(line, Counts())
        counts.requests += 1
        counts.failed += failed
        counts.prompt_tokens += record.prompt_tokens
        counts.cached_tokens += record.cached_tokens
        counts.completion_tokens += record.completion_tokens

    async def run(self) -> None:
        """For as long as the server runs, and once more when it ends."""
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                try:
                    await self.send()
                except AdapterError as error:
                    logger.warning("usage is kept in memory: %s", error)
                except Exception:  # the loop must outlive any one failure
                    logger.exception("usage is kept in memory")
        finally:
            await self._send_last()

    async def send(self) -> None:
        """Bring the sums into the database: the report that failed before, then a new one.

        Raises:
            StoreFailed: the database can't be used; nothing is lost.
        """
        while self._report or self._lines:
            if not self._report:
                self._report, self._lines = self._lines, {}
                self._number += 1
            await asyncio.to_thread(self._write, self._report, self._number)
            self._report = {}

    async def _send_last(self) -> None:
        try:
            await self.send()
        except AdapterError as error:
            lost = sum(
                counts.requests for part in (self._report, self._lines) for counts in part.values()
            )
            logger.error("the usage of %d requests is lost: %s", lost, error)  # noqa: TRY400

    def _write(self, report: dict[Line, Counts], number: int) -> None:
        now = datetime.now(UTC)
        rows = [{**line._asdict(), **asdict(counts)} for line, counts in report.items()]
        with self._database.write() as session:
            last = session.get(UsageReportRow, self._server)
            if last is None:
                old = UsageReportRow.made < now - _REPORTS_KEPT
                session.execute(delete(UsageReportRow).where(old))
                session.add(UsageReportRow(server=self._server, number=number, made=now))
            elif last.number >= number:
                return
            else:
                last.number, last.made = number, now
            session.flush()
            _add(session, rows)


def _add(session: Session, rows: list[dict[str, Any]]) -> None:
    """Add to rows that are there, or make them."""
    dialect = session.get_bind().dialect.name
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(UsageRow)
    sums = {column.key: column + insert.excluded[column.key] for column in COUNTED}
    keys = list(GROUPS.values())
    session.execute(insert.on_conflict_do_update(index_elements=keys, set_=sums), rows)


class Usage:
    """What the database says was used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sums(
        self, first: date, last: date, by: Sequence[str], project: str | None = None
    ) -> list[Sum]:
        """What was used from one day to another, both included, in the order of the groups.

        Args:
            by: names of GROUPS; none: one sum of all, where anything was used.
            project: of this one; None: of all.

        Raises:
            InvalidInput: those are over MOST_RESULTS groups.
        """
        columns = [GROUPS[name] for name in by]
        query = (
            select(*columns, *(func.sum(column) for column in COUNTED))
            .where(UsageRow.day.between(first, last))
            .group_by(*columns)
            .having(func.sum(UsageRow.requests) > 0)
            .order_by(*columns)
            .limit(MOST_RESULTS + 1)
        )
        if project is not None:
            query = query.where(UsageRow.project == project)
        with self._database.read() as session:
            rows: list[Any] = list(session.execute(query))
        if len(rows) > MOST_RESULTS:
            raise InvalidInput(
                f"these are over {MOST_RESULTS} sums",
                hint="ask for fewer days, or group by less", param="group_by",
            )  # fmt: skip
        return [
            # PostgreSQL's sums of whole numbers are decimal
            Sum(dict(zip(by, row, strict=False)), Counts(*(int(value) for value in row[len(by) :])))
            for row in rows
        ]
