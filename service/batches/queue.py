"""Batches in the database: asked for, leased by a server, told of, ended.

    validating -> in_progress -> finalizing -> completed | expired
        |  \\__________|_____________|-> cancelling -> cancelled
        failed

A server leases a batch and renews the lease. Where it dies the lease runs out, and another server,
or the same one after its start, goes on with the lines that are left.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adapters.connect import Database
from service.database import BatchPartRow, BatchRow
from service.errors import BadRequest, BatchNotFound
from service.files import new_id
from service.objects import page_of

VALIDATING, IN_PROGRESS, FINALIZING = "validating", "in_progress", "finalizing"
CANCELLING, COMPLETED, FAILED = "cancelling", "completed", "failed"
EXPIRED, CANCELLED = "expired", "cancelled"
AT_WORK = (VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING)

ENDPOINTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses",
    "/v1/generate", "/v1/translate", "/v1/answer", "/v1/classify",
)  # fmt: skip

LEASE_S = 15.0
MOST_LOST = 5
"""Servers that may end one after the other before the first open line is answered."""
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_LONGEST = timedelta(days=7)


class LeaseLost(Exception):
    """Another server has the batch."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a caller asks for, checked."""

    project: str
    caller: str
    endpoint: str
    input_file: str
    window: str
    output_expires_after_s: int | None
    metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a batch ended.

    Attributes:
        expired: lines that the file of errors has in addition to those that were counted.
    """

    status: str
    output_file: str | None = None
    error_file: str | None = None
    errors: list[dict[str, Any]] | None = None
    expired: int = 0


def window_of(text: str) -> timedelta:
    """A completion window: `24h`, as at OpenAI, or other minutes, hours and days up to `7d`.

    Raises:
        BadRequest: it is none.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    window = int(found[1]) * _UNITS[found[2]] if found else None
    if window is None or window > _LONGEST:
        raise BadRequest(
            f"completion_window: {text[:40]!r} is none", param="completion_window",
            hint="give 24h, or minutes, hours or days from 1m to 7d",
        )  # fmt: skip
    return window


class Batches:
    """All batches of one installation.

    Args:
        lease_s: after so long without a sign a server counts as dead.
    """

    def __init__(self, database: Database, lease_s: float = LEASE_S) -> None:
        self._database, self.lease_s = database, lease_s

    # for callers

    def create(self, new: NewBatch) -> BatchRow:
        """Keep a batch; a server takes it from there."""
        now = datetime.now(UTC)
        row = BatchRow(
            id=new_id("batch_"), project=new.project, caller=new.caller, endpoint=new.endpoint,
            input_file=new.input_file, window=new.window, labels=new.metadata,
            output_expires_after_s=new.output_expires_after_s, status=VALIDATING, created=now,
            expires=now + window_of(new.window), in_progress=None, cancelling=None,
            finalizing=None, ended=None, total=0, completed=0, failed=0, errors=None,
            output_file=None, error_file=None, server=None, until=0.0, lost=0,
        )  # fmt: skip
        with self._database.write() as session:
            session.add(row)
        return row

    def find(self, id_: str, project: str) -> BatchRow:
        """A project's batch.

        Raises:
            BatchNotFound: there is none, or it is another project's.
        """
        with self._database.read() as session:
            return _own(session, id_, project)

    def page(self, project: str, *, after: str | None, limit: int) -> tuple[list[BatchRow], bool]:
        """A project's batches, the last first, and whether more follow.

        Raises:
            BadRequest: there is no batch `after`.
        """
        of = BatchRow.project == project
        with self._database.read() as session:
            return page_of(session, select(BatchRow).where(of), of, after, limit)

    def cancel(self, id_: str, project: str) -> BatchRow:
        """End a batch, at once where no server is at it; answers that are there stay.

        Raises:
            BatchNotFound: as `find` says.
            BadRequest: it has ended.
        """
        with self._database.write() as session:
            row = _own(session, id_, project)
            if row.status not in AT_WORK:
                raise BadRequest(
                    f"batch {row.id} is {row.status} and can't be cancelled", param="batch_id",
                    hint="a batch that has ended stays as it is", code="wrong_status",
                )  # fmt: skip
            now = datetime.now(UTC)
            if row.status != CANCELLING:
                row.status, row.cancelling = CANCELLING, now
            part = select(BatchPartRow.number).filter_by(batch=id_).limit(1)
            nobody = row.server is None or row.until < self._database.now(session)
            if nobody and session.scalar(part) is None:
                row.status, row.ended, row.server = CANCELLED, now, None
            return row

    # for servers

    def lease(
        self, server: str, own: Collection[str] = (), served: Collection[str] = ()
    ) -> BatchRow | None:
        """Take a batch that nobody works on: of the project with the fewest at work, the oldest.

        Args:
            own: batches that the server is at; their leases may have run out while the database
                was away.
            served: projects that have to wait for others.
        """
        with self._database.write() as session:
            now = self._database.now(session)
            rows = list(session.scalars(select(BatchRow).where(BatchRow.status.in_(AT_WORK))))
            free = [
                row for row in rows
                if row.until < now and row.id not in own and row.project not in served
            ]  # fmt: skip
            if not free:
                return None
            busy = [row.project for row in rows if row.until >= now and row.server is not None]
            row = min(free, key=lambda r: (busy.count(r.project), r.number))
            row.lost += row.server is not None
            row.server, row.until = server, now + self.lease_s
            return row

    def waiting(self, served: Collection[str] = ()) -> bool:
        """Whether a look at the queue is worth it."""
        query = (
            select(BatchRow.number)
            .where(BatchRow.status.in_(AT_WORK), BatchRow.project.not_in(served))
            .limit(1)
        )
        with self._database.read() as session:
            late = BatchRow.until < self._database.now(session)
            return session.scalar(query.where(late)) is not None

    def at_work(self, ids: Collection[str]) -> set[str]:
        """Those batches that have not ended."""
        query = select(BatchRow.id).where(BatchRow.status.in_(AT_WORK), BatchRow.id.in_(ids))
        with self._database.read() as session:
            return set(session.scalars(query))

    def begin(self, id_: str, server: str, total: int) -> BatchRow:
        """The file is read, lines are asked from now on.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.total = total
            row.in_progress = row.in_progress or datetime.now(UTC)
            if row.status == VALIDATING:
                row.status = IN_PROGRESS
            return row

    def parts(self, id_: str) -> list[str]:
        """Keys of the parts that are kept, in their order."""
        query = select(BatchPartRow.place).filter_by(batch=id_).order_by(BatchPartRow.number)
        with self._database.read() as session:
            return list(session.scalars(query))

    def renew(self, id_: str, server: str) -> BatchRow:
        """Keep a lease.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.until = self._database.now(session) + self.lease_s
            return row

    def keep(
        self, id_: str, server: str, place: str, completed: int, failed: int, *, moved: bool
    ) -> BatchRow:
        """Count the lines of a part that is stored, once however often, and renew the lease.

        Args:
            moved: the first line that was open is answered, so that it ends no servers.

        Raises:
            LeaseLost: another server has it; nothing was counted.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.until = self._database.now(session) + self.lease_s
            if (
                session.scalar(select(BatchPartRow.number).filter_by(batch=id_, place=place))
                is not None
            ):
                return row
            kept = select(func.count()).select_from(BatchPartRow).where(BatchPartRow.batch == id_)
            number = session.scalar(kept) or 0
            session.add(BatchPartRow(batch=id_, number=number, place=place))
            row.completed += completed
            row.failed += failed
            row.lost = 0 if moved else row.lost
            return row

    def finalize(self, id_: str, server: str) -> BatchRow:
        """All that will be answered is.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.finalizing = row.finalizing or datetime.now(UTC)
            if row.status == IN_PROGRESS:
                row.status = FINALIZING
            return row

    def end(self, id_: str, server: str, outcome: Outcome) -> str:
        """Say how a batch ended, and return its status: a cancel that came meanwhile counts.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.status = CANCELLED if row.status == CANCELLING else outcome.status
            row.ended = datetime.now(UTC)
            row.failed += outcome.expired
            row.output_file, row.error_file = outcome.output_file, outcome.error_file
            row.errors = outcome.errors
            row.server, row.until = None, 0.0
            session.execute(delete(BatchPartRow).filter_by(batch=id_))
            return row.status

    def give_back(self, id_: str, server: str, *, pause_s: float = 0.0, lost: bool = False) -> None:
        """Another server may go on, or this one later.

        Args:
            pause_s: not before.
            lost: it counts as if the server had died at it.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.lost += lost
            now = self._database.now(session)
            row.server, row.until = None, now + pause_s if pause_s else 0.0


def end_all(session: Session, project: str, now: float) -> list[str]:
    """Cancel a project's batches; those that servers are at, and that end soon."""
    mine = select(BatchRow).where(BatchRow.project == project, BatchRow.status.in_(AT_WORK))
    busy, moment = [], datetime.now(UTC)
    for row in session.scalars(mine.order_by(BatchRow.number)).all():
        row.cancelling = row.cancelling or moment
        if row.server is not None and row.until >= now:
            row.status = CANCELLING
            busy.append(row.id)
        else:
            row.status, row.ended, row.server, row.until = CANCELLED, moment, None, 0.0
    return busy


def uses_file(session: Session, file_id: str) -> str | None:
    """The batch that still needs a file, told in words."""
    batch = session.scalar(
        select(BatchRow.id).where(BatchRow.status.in_(AT_WORK), BatchRow.input_file == file_id)
    )
    return None if batch is None else f"batch {batch}"


def _own(session: Session, id_: str, project: str) -> BatchRow:
    row = session.scalar(select(BatchRow).where(BatchRow.id == id_, BatchRow.project == project))
    if row is None:
        raise BatchNotFound(
            f"no batch {id_[:80]!r}", param="batch_id",
            hint="GET /v1/batches lists this project's batches",
        )  # fmt: skip
    return row


def _leased(session: Session, id_: str, server: str) -> BatchRow:
    row = session.scalar(select(BatchRow).where(BatchRow.id == id_, BatchRow.server == server))
    if row is None or row.status not in AT_WORK:
        raise LeaseLost(id_)
    return row
