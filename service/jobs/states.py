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
UNENDED = (QUEUED, PAUSED, *AT_WORK)
CANCEL, PAUSE = "cancel", "pause"

MOST_LOST = 3
"""Workers that may die at a job, one after the other without a step between."""
MOST_CHARACTERS = 4000
"""Of a text that is told."""
WAITS = "waits"


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


def tell(session: Session, job: str, *events: Told) -> list[Told]:
    """Add events; returns those that were not told before."""
    if not events:
        return []
    keys = select(JobEventRow.key).where(
        JobEventRow.job == job, JobEventRow.key.in_([event.key for event in events])
    )
    known = set(session.scalars(keys))
    fresh = list({event.key: event for event in events if event.key not in known}.values())
    for event in fresh:
        session.add(
            JobEventRow(
                id=new_id("ftevent-"), job=job, key=event.key, level=event.level, type=event.type,
                message=clean(event.message), data=event.data, created=datetime.now(UTC),
            )
        )  # fmt: skip
    session.flush()
    return fresh


def clean(said: str) -> str:
    """A text that every database takes, whoever said it."""
    short = said[:MOST_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return short.encode("utf-8", "replace").decode()  # half of a surrogate pair is no character


def numbered(session: Session, job: str, name: str) -> str:
    """A key for what may happen several times."""
    count = session.scalar(
        select(func.count()).select_from(JobEventRow)
        .where(JobEventRow.job == job, JobEventRow.key.startswith(f"{name}-"))
    )  # fmt: skip
    return f"{name}-{count or 0}"


def waits(session: Session, row: JobRow, message: str) -> None:
    """Say why a job waits, once for as long as nothing else happens to it."""
    if not waits_told(session, row.id):
        key = numbered(session, row.id, WAITS)
        tell(session, row.id, Told(key, message, level="warn"))


def waits_told(session: Session, job: str) -> bool:
    events = select(JobEventRow.key).filter_by(job=job).order_by(JobEventRow.number.desc())
    return (session.scalar(events.limit(1)) or "").startswith(f"{WAITS}-")


def rest(session: Session, row: JobRow) -> None:
    _let_go(row, PAUSED)
    row.wanted = None
    tell(session, row.id, Told(numbered(session, row.id, "paused"), "The job is paused"))


def give_back(session: Session, row: JobRow) -> None:
    """Into the queue, unless the caller wants something else by now."""
    if row.wanted == CANCEL:
        end(session, row, Outcome(CANCELLED))
    elif row.wanted == PAUSE:
        rest(session, row)
    else:
        _let_go(row, QUEUED)


def lost(session: Session, row: JobRow) -> None:
    row.lost += 1
    key = numbered(session, row.id, "lost")
    tell(session, row.id, Told(key, f"The worker {row.worker} was lost", level="warn"))
    if row.wanted != CANCEL and row.lost >= MOST_LOST:
        error = {
            "code": "worker_lost", "param": None,
            "message": f"{row.lost} workers were lost at this job; maybe it needs more memory "
            "than there is",
        }  # fmt: skip
        end(session, row, Outcome(FAILED, error=error))
    else:
        give_back(session, row)


def _let_go(row: JobRow, status: str) -> None:
    row.status, row.worker, row.until, row.ends = status, None, 0.0, None


_WORDS = {
    SUCCEEDED: "The job has successfully completed", FAILED: "The job failed",
    CANCELLED: "The job was cancelled",
}  # fmt: skip


def end(session: Session, row: JobRow, outcome: Outcome) -> None:
    _let_go(row, outcome.status)
    row.finished, row.wanted = datetime.now(UTC), None
    row.result, row.result_file, row.error = outcome.model, outcome.result_file, outcome.error
    message, level = _WORDS[outcome.status], "info"
    if outcome.error is not None:
        row.error = {name: said and clean(str(said)) for name, said in outcome.error.items()}
        message, level = f"{message}: {outcome.error['message']}", "error"
    tell(session, row.id, Told("ended", message, level=level))


def wrong_status(row: JobRow, wanted: str, hint: str) -> BadRequest:
    return BadRequest(
        f"fine-tuning job {row.id} is {row.status} and can't be {wanted}",
        param="fine_tuning_job_id", hint=hint, code="wrong_status",
    )  # fmt: skip
