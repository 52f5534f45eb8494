"""Who is next: of queued jobs the order in which they are taken, and whose lease has run out."""

from collections.abc import Collection
from heapq import nsmallest

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.database import JobRow
from service.jobs.states import AT_WORK, QUEUED


def in_line(session: Session, most: int, but: Collection[str] = ()) -> list[JobRow]:
    """The next jobs, as if the projects took turns: those with the fewest at work first.

    Of thousands that wait only a number is read, and the whole row of the few that are next.

    Args:
        but: jobs that are left out.
    """
    rank = func.row_number().over(partition_by=JobRow.project, order_by=JobRow.number)
    query = select(JobRow.id, JobRow.project, JobRow.number, rank.label("rank"))
    waiting = session.execute(query.where(JobRow.status == QUEUED, JobRow.id.not_in(but))).all()
    if not waiting:
        return []
    counts = select(JobRow.project, func.count()).where(JobRow.status.in_(AT_WORK))
    busy = dict(session.execute(counts.group_by(JobRow.project)).all())
    first = nsmallest(
        most, waiting, key=lambda row: (busy.get(row.project, 0) + row.rank, row.number)
    )
    chosen = select(JobRow).where(JobRow.id.in_([row.id for row in first]))
    rows = {row.id: row for row in session.scalars(chosen)}
    return [rows[row.id] for row in first]


def late(session: Session, now: float, but: Collection[str] = ()) -> list[JobRow]:
    """Jobs at work whose workers gave no sign for the time of a lease."""
    query = select(JobRow).where(JobRow.status.in_(AT_WORK), JobRow.until < now)
    return list(session.scalars(query.where(JobRow.id.not_in(but)).order_by(JobRow.number)))
