"""The states of a fine-tuning job, and what each change tells, in a transaction of `queue`."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.database import JobEventRow, JobRow
from service.errors import BadRequest
from service.files import new_id

QUEUED, VALIDATING, RUNNING, PAUSED = "queued", "validating_files", "running", "paused"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
AT_WORK = (VALIDATING, RUNNING)
ENDED = (SUCCEEDED, FAILED, CANCELLED)
CANCEL, PAUSE = "cancel", "pause"

MOST_LOST = 3
"""Workers that may die at a job."""


@dataclass(frozen=True, slots=True)
class Told:
    """An event to be told once: its key says what it is about."""

    key: str
    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    status: str
    model: str | None = None
    result_file: str | None = None
    error: dict[str, Any] | None = None


def tell(session: Session, job: str, event: Told) -> None:
    known = select(JobEventRow.number).filter_by(job=job, key=event.key)
    if session.scalar(known) is None:
        session.add(
            JobEventRow(
                id=new_id("ftevent-"), job=job, key=event.key, level=event.level, type=event.type,
                message=event.message, data=event.data, created=datetime.now(UTC),
            )
        )  # fmt: skip
        session.flush()


def numbered(session: Session, job: str, name: str) -> str:
    """A key for what may happen several times."""
    count = session.scalar(
        select(func.count()).select_from(JobEventRow)
        .where(JobEventRow.job == job, JobEventRow.key.startswith(f"{name}-"))
    )  # fmt: skip
    return f"{name}-{count or 0}"


def rest(session: Session, row: JobRow) -> None:
    row.status, row.wanted, row.worker, row.until = PAUSED, None, None, 0.0
    tell(session, row.id, Told(numbered(session, row.id, "paused"), "The job is paused"))


def lost(session: Session, row: JobRow) -> None:
    row.lost += 1
    told = Told(f"lost-{row.lost}", f"The worker {row.worker} was lost", level="warn")
    tell(session, row.id, told)
    row.worker, row.until = None, 0.0
    if row.wanted == CANCEL:
        end(session, row, Outcome(CANCELLED))
    elif row.lost >= MOST_LOST:
        error = {
            "code": "worker_lost", "param": None,
            "message": f"{row.lost} workers were lost at this job; maybe it needs more memory "
            "than there is",
        }  # fmt: skip
        end(session, row, Outcome(FAILED, error=error))
    elif row.wanted == PAUSE:
        rest(session, row)
    else:
        row.status = QUEUED


_WORDS = {
    SUCCEEDED: "The job has successfully completed", FAILED: "The job failed",
    CANCELLED: "The job was cancelled",
}  # fmt: skip


def end(session: Session, row: JobRow, outcome: Outcome) -> None:
    row.status, row.finished = outcome.status, datetime.now(UTC)
    row.wanted, row.worker, row.until, row.ends = None, None, 0.0, None
    row.result, row.result_file, row.error = outcome.model, outcome.result_file, outcome.error
    message, level = _WORDS[outcome.status], "info"
    if outcome.error is not None:
        message, level = f"{message}: {outcome.error['message']}", "error"
    tell(session, row.id, Told("ended", message, level=level))


def wrong_status(row: JobRow, wanted: str, hint: str) -> BadRequest:
    return BadRequest(
        f"fine-tuning job {row.id} is {row.status} and can't be {wanted}",
        param="fine_tuning_job_id", hint=hint, code="wrong_status",
    )  # fmt: skip
