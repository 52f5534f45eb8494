"""Batches in the database: asked for, leased by a server, told of, ended.

    validating -> in_progress -> finalizing -> completed | expired
        |  \\__________|_____________|-> cancelling -> cancelled
        failed

A server leases a batch and renews the lease as lines are answered. Where it dies the lease runs
out, and another server, or the same one after its start, goes on with the lines that are left.
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
"""Servers that may die one after the other without a line between."""
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
        """End a batch; answers that are there stay.

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
            if row.status != CANCELLING:
                row.status, row.cancelling = CANCELLING, datetime.now(UTC)
            return row

    # for servers

    def lease(self, server: str, own: Collection[str] = ()) -> BatchRow | None:
        """Take a batch that nobody works on: of the project with the fewest at work, the oldest.

        Args:
            own: batches that the server is at; their leases may have run out while the database
                was away.
        """
        with self._database.write() as session:
            now = self._database.now(session)
            rows = list(session.scalars(select(BatchRow).where(BatchRow.status.in_(AT_WORK))))
            free = [row for row in rows if row.until < now and row.id not in own]
            if not free:
                return None
            busy = [row.project for row in rows if row.until >= now]
            row = min(free, key=lambda r: (busy.count(r.project), r.number))
            row.lost += row.server is not None
            row.server, row.until = server, now + self.lease_s
            return row

    def waiting(self) -> bool:
        """Whether a look at the queue is worth it."""
        query = select(BatchRow.number).where(BatchRow.status.in_(AT_WORK)).limit(1)
        with self._database.read() as session:
            late = BatchRow.until < self._database.now(session)
            return session.scalar(query.where(late)) is not None

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

    def keep(self, id_: str, server: str, place: str, completed: int, failed: int) -> BatchRow:
        """Count the lines of a part that is stored, and renew the lease.

        Raises:
            LeaseLost: another server has it; nothing was counted.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.until = self._database.now(session) + self.lease_s
            kept = select(func.count()).select_from(BatchPartRow).where(BatchPartRow.batch == id_)
            number = session.scalar(kept) or 0
            session.add(BatchPartRow(batch=id_, number=number, place=place))
            row.completed += completed
            row.failed += failed
            row.lost = 0
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

    def end(
        self, id_: str, server: str, status: str, *,
        output_file: str | None = None, error_file: str | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Say how a batch ended; its parts are no longer needed.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.status, row.ended = status, datetime.now(UTC)
            row.output_file, row.error_file, row.errors = output_file, error_file, errors
            row.server, row.until = None, 0.0
            session.execute(delete(BatchPartRow).filter_by(batch=id_))

    def give_back(self, id_: str, server: str) -> None:
        """This server ends; another may go on at once.

        Raises:
            LeaseLost: another server has it.
        """
        with self._database.write() as session:
            row = _leased(session, id_, server)
            row.server, row.until = None, 0.0


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
