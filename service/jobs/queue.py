"""Fine-tuning jobs in the database: asked for, leased, told of, ended.

    queued -> validating_files -> running -> succeeded | failed
       \\________________|___________|-----> paused -> queued
                                    \\-----> cancelled

A worker leases a job for a while and renews the lease as it works. Where it dies the lease
runs out, and the job goes to another, which resumes it; after three deaths without a step between
it has failed. Times of leases are the database's own. Every
change is one transaction that looks at what is there, so that of two workers one has a job.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service.database import CheckpointRow, JobEventRow, JobRow
from service.errors import JobNotFound
from service.files import new_id
from service.jobs import states
from service.jobs.leased import LEASE_S, LeasedJobs, LeaseLost
from service.jobs.states import (
    AT_WORK,
    CANCEL,
    CANCELLED,
    ENDED,
    PAUSE,
    PAUSED,
    QUEUED,
    Outcome,
    Told,
)
from service.objects import page_of

__all__ = ["LEASE_S", "Jobs", "LeaseLost", "Order", "uses_file"]


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


class Jobs(LeasedJobs):
    """All fine-tuning jobs of one installation; here what callers ask."""

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
                self._act_where_late(session, row)
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
                self._act_where_late(session, row)
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

    def _act_where_late(self, session: Session, row: JobRow) -> None:
        """What is wanted of a worker that died is done at once."""
        if row.until < self._database.now(session):
            states.lost(session, row)


def end_all(session: Session, project: str, now: float) -> list[str]:
    """Cancel a project's jobs; those that workers are at, and that end soon."""
    mine = select(JobRow).where(JobRow.project == project, JobRow.status.in_(states.UNENDED))
    busy = []
    for row in session.scalars(mine.order_by(JobRow.number)).all():
        if row.status in AT_WORK and row.until >= now:
            row.wanted = CANCEL
            busy.append(row.id)
        else:
            states.end(session, row, Outcome(CANCELLED))
    return busy


def uses_file(session: Session, file_id: str) -> str | None:
    """The job that still needs a file, told in words."""
    job = session.scalar(
        select(JobRow.id).where(
            JobRow.status.in_(states.UNENDED),
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
