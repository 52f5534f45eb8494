"""Fine-tuning jobs in the database: asked for, leased, told of, ended.

    queued -> validating_files -> running -> succeeded | failed
       \\________________|___________|-----> paused -> queued
                                    \\-----> cancelled

A worker leases a job for a while and renews the lease as it works. Where it dies the lease
runs out, and the job goes to another, which resumes it; after three deaths it has failed. Every
change is one transaction that looks at what is there, so that of two workers one has a job.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from adapters.connect import Database
from service.database import CheckpointRow, JobEventRow, JobRow
from service.errors import JobNotFound
from service.files import new_id
from service.jobs import states
from service.jobs.states import (
    AT_WORK,
    CANCEL,
    CANCELLED,
    ENDED,
    PAUSE,
    PAUSED,
    QUEUED,
    RUNNING,
    VALIDATING,
    Outcome,
    Told,
)
from service.objects import page_of

LEASE_S = 30.0
WAITS = "waits"


class LeaseLost(Exception):
    """Another worker has the job, or it has ended."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller asks for, checked."""

    project: str
    caller: str
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    method: dict[str, Any]
    metadata: dict[str, Any] | None
    trainer: dict[str, Any]
    """What the worker tells the trainer."""


class Jobs:
    """All fine-tuning jobs of one installation.

    Args:
        lease_s: after so long without a sign a worker counts as dead.
    """

    def __init__(self, database: Database, lease_s: float = LEASE_S) -> None:
        self._database, self.lease_s = database, lease_s

    # for callers

    def create(self, order: Order) -> JobRow:
        """Put a job into the queue."""
        now = datetime.now(UTC)
        row = JobRow(
            id=new_id("ftjob-"), project=order.project, caller=order.caller, model=order.model,
            training_file=order.training_file, validation_file=order.validation_file,
            suffix=order.suffix, seed=order.seed, method=order.method, labels=order.metadata,
            order=order.trainer, status=QUEUED, wanted=None, created=now, started=None,
            finished=None, ends=None, trained_tokens=None, result=None, result_file=None,
            error=None, worker=None, until=0.0, lost=0,
        )  # fmt: skip
        with self._database.write() as session:
            session.add(row)
            session.flush()
            states.tell(session, row.id, Told("created", f"Created fine-tuning job: {row.id}"))
        return row

    def find(self, id_: str, project: str) -> JobRow:
        """A project's job.

        Raises:
            JobNotFound: there is none, or it is another project's.
        """
        with self._database.read() as session:
            return _own(session, id_, project)

    def page(
        self, project: str, *, after: str | None, limit: int, metadata: dict[str, str] | None
    ) -> tuple[list[JobRow], bool]:
        """A project's jobs, the last first, and whether more follow.

        Raises:
            BadRequest: there is no job `after`.
        """
        query = select(JobRow).where(JobRow.project == project)
        for key, value in (metadata or {}).items():
            query = query.where(JobRow.labels[key].as_string() == value)
        with self._database.read() as session:
            return page_of(session, query, JobRow.project == project, after, limit)

    def events(
        self, id_: str, project: str, *, after: str | None, limit: int
    ) -> tuple[list[JobEventRow], bool]:
        """A job's events, the last first, and whether more follow.

        Raises:
            JobNotFound, BadRequest.
        """
        with self._database.read() as session:
            _own(session, id_, project)
            query = select(JobEventRow).where(JobEventRow.job == id_)
            return page_of(session, query, JobEventRow.job == id_, after, limit)

    def checkpoints(
        self, id_: str, project: str, *, after: str | None, limit: int
    ) -> tuple[list[CheckpointRow], bool]:
        """A job's checkpoints, the last first, and whether more follow.

        Raises:
            JobNotFound, BadRequest.
        """
        with self._database.read() as session:
            _own(session, id_, project)
            query = select(CheckpointRow).where(CheckpointRow.job == id_)
            return page_of(session, query, CheckpointRow.job == id_, after, limit)

    def cancel(self, id_: str, project: str) -> JobRow:
        """End a job; one that is at work ends within a step.

        Raises:
            JobNotFound: as `find` says.
            BadRequest: it has ended.
        """
        with self._database.write() as session:
            row = _own(session, id_, project)
            if row.status in ENDED:
                raise states.wrong_status(row, "cancelled", "a job that has ended stays as it is")
            if row.status in AT_WORK:
                row.wanted = CANCEL
            else:
                states.end(session, row, Outcome(CANCELLED))
            return row

    def pause(self, id_: str, project: str) -> JobRow:
        """Let a job rest, its last checkpoint kept.

        Raises:
            JobNotFound: as `find` says.
            BadRequest: it rests already, or has ended.
        """
        with self._database.write() as session:
            row = _own(session, id_, project)
            if row.status in (*ENDED, PAUSED):
                raise states.wrong_status(row, "paused", "pause a job that waits or runs")
            if row.status in AT_WORK:
                row.wanted = row.wanted or PAUSE
            else:
                states.rest(session, row)
            return row

    def resume(self, id_: str, project: str) -> JobRow:
        """Let a paused job go on from its last checkpoint.

        Raises:
            JobNotFound: as `find` says.
            BadRequest: it is not paused.
        """
        with self._database.write() as session:
            row = _own(session, id_, project)
            if row.status in AT_WORK and row.wanted == PAUSE:
                row.wanted = None
            elif row.status == PAUSED:
                row.status = QUEUED
                states.tell(
                    session,
                    id_,
                    Told(states.numbered(session, id_, "resumed"), "The job is resumed"),
                )
            else:
                raise states.wrong_status(row, "resumed", "resume a job that is paused")
            return row

    # for workers

    def waiting(self) -> bool:
        """Whether a look at the queue is worth it."""
        late = JobRow.status.in_(AT_WORK) & (JobRow.until < time.time())
        query = select(JobRow.number).where(or_(JobRow.status == QUEUED, late)).limit(1)
        with self._database.read() as session:
            return session.scalar(query) is not None

    def line(self, most: int) -> list[JobRow]:
        """The next jobs: of projects with the fewest at work first, the oldest first.

        One whose worker died is put back, or has failed when that came too often.
        """
        with self._database.write() as session:
            return _line(session)[:most]

    def at_work(self, workers: str) -> int:
        """How many jobs those workers do whose names begin so."""
        mine = JobRow.worker.startswith(workers, autoescape=True)
        query = select(func.count()).where(JobRow.status.in_(AT_WORK), mine)
        with self._database.read() as session:
            return session.scalar(query) or 0

    def lease(self, worker: str, id_: str | None = None) -> JobRow | None:
        """Take a job that waits, or the next one; None when there is none."""
        with self._database.write() as session:
            waiting = _line(session)
            row = next((row for row in waiting if id_ in (None, row.id)), None)
            if row is None:
                return None
            row.status, row.worker, row.until = VALIDATING, worker, time.time() + self.lease_s
            row.started = row.started or datetime.now(UTC)
            if row.lost == 0:
                states.tell(session, row.id, Told("validating", "Validating the files"))
            return row

    def tell_waiting(self, id_: str, message: str) -> None:
        """Say why a job still waits, once for as long as nothing else happens to it."""
        with self._database.read() as session:
            if not _waits_untold(session, id_):
                return
        with self._database.write() as session:
            if _waits_untold(session, id_):
                key = states.numbered(session, id_, WAITS)
                states.tell(session, id_, Told(key, message, level="warn"))

    def renew(self, id_: str, worker: str, ends: datetime | None = None) -> str | None:
        """Keep a lease; returns what the job shall do next.

        Raises:
            LeaseLost: it ran out, and another worker may have the job.
        """
        with self._database.write() as session:
            row = _leased(session, id_, worker)
            row.until = time.time() + self.lease_s
            row.ends = ends if ends is not None else row.ends
            return row.wanted

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
            for event in events:
                states.tell(session, id_, event)

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

    def give_back(self, id_: str, worker: str) -> None:
        """Put a job back into the queue: its worker ends.

        Raises:
            LeaseLost: as `renew` says.
        """
        with self._database.write() as session:
            row = _leased(session, id_, worker)
            row.status, row.worker, row.until = QUEUED, None, 0.0

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
            for event in events:
                states.tell(session, id_, event)
            states.end(session, row, outcome)


def uses_file(session: Session, file_id: str) -> str | None:
    """The job that still needs a file, told in words."""
    job = session.scalar(
        select(JobRow.id).where(
            JobRow.status.not_in(ENDED),
            or_(JobRow.training_file == file_id, JobRow.validation_file == file_id),
        )
    )
    return None if job is None else f"fine-tuning job {job}"


def _own(session: Session, id_: str, project: str) -> JobRow:
    row = session.scalar(select(JobRow).where(JobRow.id == id_, JobRow.project == project))
    if row is None:
        raise JobNotFound(
            f"no fine-tuning job {id_[:80]!r}", param="fine_tuning_job_id",
            hint="GET /v1/fine_tuning/jobs lists this project's jobs",
        )  # fmt: skip
    return row


def _leased(session: Session, id_: str, worker: str) -> JobRow:
    row = session.scalar(select(JobRow).where(JobRow.id == id_, JobRow.worker == worker))
    if row is None or row.status not in AT_WORK:
        raise LeaseLost(id_)
    return row


def _line(session: Session) -> list[JobRow]:
    late = select(JobRow).where(JobRow.status.in_(AT_WORK), JobRow.until < time.time())
    for row in session.scalars(late):
        states.lost(session, row)
    busy = dict(
        session.execute(
            select(JobRow.project, func.count())
            .where(JobRow.status.in_(AT_WORK)).group_by(JobRow.project)
        ).all()
    )  # fmt: skip
    waiting = session.scalars(select(JobRow).where(JobRow.status == QUEUED))
    return sorted(waiting, key=lambda row: (busy.get(row.project, 0), row.number))


def _waits_untold(session: Session, id_: str) -> bool:
    waits = session.scalar(select(JobRow.number).filter_by(id=id_, status=QUEUED))
    events = select(JobEventRow.key).filter_by(job=id_).order_by(JobEventRow.number.desc())
    last = session.scalar(events.limit(1)) or ""
    return waits is not None and not last.startswith(f"{WAITS}-")
