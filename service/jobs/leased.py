"""What workers ask of the queue: jobs to take, to keep, to tell of and to end.

Every change is one transaction that looks at what is there, so that of two workers one has a job.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adapters.connect import Database
from service.database import CheckpointRow, JobEventRow, JobRow
from service.files import new_id
from service.jobs import states
from service.jobs.line import in_line, late
from service.jobs.states import AT_WORK, QUEUED, RUNNING, VALIDATING, Outcome, Told

LEASE_S = 30.0
_ASKED_AT_ONCE = 500


class LeaseLost(Exception):
    """Another worker has the job, or it has ended."""


class LeasedJobs:
    """The part of `Jobs` that is for workers.

    Args:
        lease_s: after so long without a sign a worker counts as dead.
    """

    def __init__(self, database: Database, lease_s: float = LEASE_S) -> None:
        self._database, self.lease_s = database, lease_s

    def line(self, most: int, but: Collection[str] = ()) -> list[JobRow]:
        """The next jobs, in the order in which they are to be begun.

        Args:
            but: jobs that are left out.
        """
        with self._database.read() as session:
            return in_line(session, most, but)

    def put_back_late(self, own: Collection[str] = ()) -> None:
        """Put jobs back whose workers died; one where that came too often has failed.

        Args:
            own: jobs in the caller's own hands; their leases may have run out while the database
                was away.
        """
        with self._database.read() as session:
            if not late(session, self._database.now(session), own):
                return
        with self._database.write() as session:
            for row in late(session, self._database.now(session), own):
                states.lost(session, row)

    def at_work(self, workers: str) -> int:
        """How many jobs those workers do whose names begin so."""
        mine = JobRow.worker.startswith(workers, autoescape=True)
        query = select(func.count()).where(JobRow.status.in_(AT_WORK), mine)
        with self._database.read() as session:
            return session.scalar(query) or 0

    def statuses(self, ids: Collection[str]) -> dict[str, str]:
        """Those of the jobs that there are."""
        found: dict[str, str] = {}
        with self._database.read() as session:
            left = list(ids)
            while left:
                some, left = left[:_ASKED_AT_ONCE], left[_ASKED_AT_ONCE:]
                query = select(JobRow.id, JobRow.status).where(JobRow.id.in_(some))
                found |= dict(session.execute(query).all())
        return found

    def lease(self, worker: str, id_: str | None = None) -> JobRow | None:
        """Take a job that waits, or the next one; None when there is none."""
        with self._database.write() as session:
            if id_ is None:
                row = next(iter(in_line(session, 1)), None)
            else:
                row = session.scalar(select(JobRow).filter_by(id=id_, status=QUEUED))
            if row is None:
                return None
            row.status, row.worker = VALIDATING, worker
            row.until = self._database.now(session) + self.lease_s
            row.started = row.started or datetime.now(UTC)
            states.tell(session, row.id, Told("validating", "Validating the files"))
            return row

    def tell_waiting(self, id_: str, message: str) -> None:
        """Say why a job still waits, once for as long as nothing else happens to it."""
        with self._database.read() as session:
            if states.waits_told(session, id_):
                return
        with self._database.write() as session:
            row = session.scalar(select(JobRow).filter_by(id=id_, status=QUEUED))
            if row is not None:
                states.waits(session, row, message)

    def renew(self, id_: str, worker: str) -> str | None:
        """Keep a lease; returns what the job shall do next.

        Raises:
            LeaseLost: it ran out, and another worker may have the job.
        """
        wanted = self.renew_all(worker, {id_: None})
        if id_ not in wanted:
            raise LeaseLost(id_)
        return wanted[id_]

    def renew_all(self, worker: str, ends: Mapping[str, datetime | None]) -> dict[str, str | None]:
        """Keep the leases of some jobs; what each shall do next, where it is the worker's still.

        Args:
            ends: when each job is expected to be done, where that is known.
        """
        mine = select(JobRow).where(
            JobRow.id.in_(ends), JobRow.worker == worker, JobRow.status.in_(AT_WORK)
        )
        with self._database.write() as session:
            until = self._database.now(session) + self.lease_s
            rows = list(session.scalars(mine))
            for row in rows:
                row.until, row.ends = until, ends[row.id] or row.ends
            return {row.id: row.wanted for row in rows}

    def last_step(self, id_: str) -> int:
        """The last step that was told of a job; 0: none."""
        query = select(JobEventRow.data).filter_by(job=id_, type="metrics")
        with self._database.read() as session:
            last = session.scalar(query.order_by(JobEventRow.number.desc()).limit(1))
        return 0 if last is None else int(last["step"])

    def tell(
        self, id_: str, worker: str, events: Sequence[Told], *,
        running: bool = False, trained_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Add events; those that were told before are left out.

        Args:
            running: the files are valid, and training has begun.

        Raises:
            LeaseLost: as `renew` says; nothing was told.
        """
        with self._database.write() as session:
            row = _leased(session, id_, worker)
            if running and row.status == VALIDATING:
                row.status = RUNNING
            if trained_tokens is not None:
                row.trained_tokens = trained_tokens
            told = states.tell(session, id_, *events)
            if any(event.type == "metrics" for event in told):  # it comes further than before
                row.lost = 0

    def add_checkpoint(
        self, id_: str, worker: str, step: int, model: str, metrics: dict[str, Any]
    ) -> None:
        """Tell of an adapter from within the job; a second time changes nothing.

        Raises:
            LeaseLost: as `renew` says.
        """
        with self._database.write() as session:
            _leased(session, id_, worker)
            known = select(CheckpointRow.number).filter_by(job=id_, step=step)
            if session.scalar(known) is None:
                session.add(
                    CheckpointRow(
                        id=new_id("ftckpt_"), job=id_, step=step, model=model, metrics=metrics,
                        created=datetime.now(UTC),
                    )
                )  # fmt: skip

    def rest(self, id_: str, worker: str) -> None:
        """The job was paused as it was asked to be.

        Raises:
            LeaseLost: as `renew` says.
        """
        with self._database.write() as session:
            states.rest(session, _leased(session, id_, worker))

    def give_back(self, id_: str, worker: str, why: str | None = None) -> str:
        """Put a job back, as where its worker ends; what its caller wants is done first.

        Args:
            why: told, once for as long as nothing else happens to the job.

        Returns:
            The status that it has now.

        Raises:
            LeaseLost: as `renew` says.
        """
        with self._database.write() as session:
            row = _leased(session, id_, worker)
            states.give_back(session, row)
            if why is not None and row.status == QUEUED:
                states.waits(session, row, why)
            return row.status

    def lose(self, id_: str, worker: str) -> None:
        """The process that did the job died, as by a lack of memory.

        Raises:
            LeaseLost: as `renew` says.
        """
        with self._database.write() as session:
            states.lost(session, _leased(session, id_, worker))

    def end(self, id_: str, worker: str, outcome: Outcome, events: Sequence[Told] = ()) -> None:
        """Say how a job ended.

        Raises:
            LeaseLost: as `renew` says.
        """
        with self._database.write() as session:
            row = _leased(session, id_, worker)
            states.tell(session, id_, *events)
            states.end(session, row, outcome)


def _leased(session: Session, id_: str, worker: str) -> JobRow:
    row = session.scalar(select(JobRow).where(JobRow.id == id_, JobRow.worker == worker))
    if row is None or row.status not in AT_WORK:
        raise LeaseLost(id_)
    return row
