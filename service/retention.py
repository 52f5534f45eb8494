"""Retention: what is older than the settings allow goes, and the audit log says so once.

Each step is one transaction under the database's write lock, which finds what is due, puts it on
record and takes it away; so of several servers one tells of it. Contents of files go after their
rows are marked (`Files.expire`), logs on the disk after their job's events.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import SERVER, Act, Actor, acting
from adapters.connect import Database
from adapters.database import AuditRow
from service.database import FileRow, JobEventRow, JobRow, UploadRow, UsageRow
from service.files import AT_ONCE, DELETED, UPLOADED, WRITTEN, Files, lives
from service.jobs.states import ENDED
from service.settings import Settings
from service.uploads import PENDING

Ids = dict[str, list[str]]
"""By whose they are."""


@dataclass(frozen=True, slots=True)
class Periods:
    """How long what is kept; none: for ever."""

    files: timedelta | None = None
    outputs: timedelta | None = None
    job_logs: timedelta | None = None
    usage: timedelta | None = None
    audit: timedelta | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Periods":
        days = {
            name: getattr(settings, f"keep_{name}_days")
            for name in ("files", "outputs", "job_logs", "usage", "audit")
        }
        return cls(
            **{name: timedelta(days=kept) for name, kept in days.items() if kept is not None}
        )


@dataclass(frozen=True, slots=True)
class Due:
    """What went, or would go: files, jobs with their events, days of usage, entries."""

    kind: str
    project: str | None
    count: int


class Retention:
    """The retention of one installation.

    Args:
        jobs: the folder in which this machine's workers do their jobs.
    """

    def __init__(self, database: Database, files: Files, jobs: Path, periods: Periods) -> None:
        self._database, self._files, self._jobs = database, files, jobs
        self._periods = periods

    def due(self, now: datetime | None = None) -> list[Due]:
        """What would go now."""
        now = datetime.now(UTC) if now is None else now
        found: Counter[tuple[str, str | None]] = Counter()
        with self._database.read() as session:
            for kind, purposes, period in self._of_files():
                which = _old_files(purposes, now - period)
                for row in self._files.unused(session, which):
                    found[kind, row.project] += 1
            if self._periods.job_logs is not None:
                for job in self._jobs_with_logs(session, now - self._periods.job_logs):
                    found["job_logs", job.project] += 1
            if self._periods.usage is not None:
                for project, count in _usage(session, now - self._periods.usage):
                    found["usage", project] += count
            if self._periods.audit is not None:
                _, found["audit", None] = _entries(session, now - self._periods.audit)
        ordered = sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        return [Due(kind, project, count) for (kind, project), count in ordered if count]

    def keep(self) -> None:
        """As a server does by itself."""
        with acting(Actor(SERVER, "retention")):
            self.apply()

    def apply(self, now: datetime | None = None) -> list[Due]:
        """Remove what is due.

        Raises:
            StoreFailed, OSError: the rest is left for the next time.
        """
        now = datetime.now(UTC) if now is None else now
        gone: list[Due] = []
        for kind, purposes, period in self._of_files():
            act = Act.RETENTION_FILES if kind == "files" else Act.RETENTION_OUTPUTS
            gone += self._let_files_go(_old_files(purposes, now - period), act, period)
        if self._periods.files is not None:
            self._forget_uploads(now - self._periods.files)
        self._files.expire()
        if self._periods.job_logs is not None:
            gone += self._let_logs_go(now, self._periods.job_logs)
        if self._periods.usage is not None:
            gone += self._let_usage_go(now, self._periods.usage)
        if self._periods.audit is not None:
            gone += self._let_entries_go(now, self._periods.audit)
        return gone

    def _of_files(self) -> Iterator[tuple[str, tuple[str, ...], timedelta]]:
        if self._periods.files is not None:
            yield "files", UPLOADED, self._periods.files
        if self._periods.outputs is not None:
            yield "outputs", WRITTEN, self._periods.outputs

    def _let_files_go(self, which: ColumnElement[bool], act: Act, period: timedelta) -> list[Due]:
        last, gone = 0, Counter[str]()
        while True:
            with self._database.write() as session:
                numbers = self._files.numbers(session, which & (FileRow.number > last))
                if not numbers:
                    break
                late: Ids = defaultdict(list)
                for row in self._files.unused(session, FileRow.number.in_(numbers)):
                    row.expires = DELETED
                    late[row.project].append(row.id)
                _tell(session, act, late, period)
            last = numbers[-1]
            gone.update({project: len(ids) for project, ids in late.items()})
        return _sums(act, gone)

    def _forget_uploads(self, before: datetime) -> None:
        """What is known of uploads that have ended."""
        ended = UploadRow.status != PENDING, UploadRow.created < before
        with self._database.write() as session:
            session.execute(delete(UploadRow).where(*ended))

    def _let_logs_go(self, now: datetime, period: timedelta) -> list[Due]:
        last, gone = 0, Counter[str]()
        while True:
            with self._database.write() as session:
                rows = self._jobs_with_logs(session, now - period, last, AT_ONCE)
                if not rows:
                    return _sums(Act.RETENTION_JOB_LOGS, gone)
                late: Ids = defaultdict(list)
                for row in rows:
                    late[row.project].append(row.id)
                ids = [row.id for row in rows]
                session.execute(delete(JobEventRow).where(JobEventRow.job.in_(ids)))
                _tell(session, Act.RETENTION_JOB_LOGS, late, period)
            for id_ in ids:
                shutil.rmtree(self._jobs / id_, ignore_errors=True)
            gone.update({project: len(some) for project, some in late.items()})
            last = rows[-1].number

    def _jobs_with_logs(
        self, session: Session, before: datetime, last: int = 0, most: int | None = None
    ) -> list[JobRow]:
        """Jobs after a number that ended before a time and left events, or a log here."""
        here = [folder.name for folder in self._jobs.glob("ftjob-*")][:10_000]
        told = select(JobEventRow.number).where(JobEventRow.job == JobRow.id).exists()
        query = select(JobRow).where(
            JobRow.number > last, JobRow.status.in_(ENDED), JobRow.finished < before,
            or_(told, JobRow.id.in_(here)),
        )  # fmt: skip
        return list(session.scalars(query.order_by(JobRow.number).limit(most)))

    def _let_usage_go(self, now: datetime, period: timedelta) -> list[Due]:
        with self._database.write() as session:
            late = _usage(session, now - period)
            for project, count in late:
                details = {"count": count, "before": str((now - period).date())}
                audit.record(
                    session, Act.RETENTION_USAGE, "usage", project=project, details=details
                )
            session.execute(delete(UsageRow).where(UsageRow.day < (now - period).date()))
        return [Due("usage", project, count) for project, count in late]

    def _let_entries_go(self, now: datetime, period: timedelta) -> list[Due]:
        with self._database.write() as session:
            through, count = _entries(session, now - period)
            if not count:
                return []
            details = {"count": count, "older_than_days": _days(period)}
            said = audit.record(session, Act.RETENTION_AUDIT, "audit", details=details)
            said.through = through
            session.flush()  # the database lets go of what a later row names
            session.execute(delete(AuditRow).where(AuditRow.number <= through))
        return [Due("audit", None, count)]


def _old_files(purposes: tuple[str, ...], before: datetime) -> ColumnElement[bool]:
    """Files that are not known to go already."""
    return FileRow.purpose.in_(purposes) & (FileRow.created < before) & lives()


def _usage(session: Session, before: datetime) -> list[tuple[str, int]]:
    query = select(UsageRow.project, func.count()).where(UsageRow.day < before.date())
    rows = session.execute(query.group_by(UsageRow.project).order_by(UsageRow.project))
    return [(row[0], row[1]) for row in rows]


def _entries(session: Session, before: datetime) -> tuple[int, int]:
    """The last entry before a time, and how many there are up to it."""
    through = session.scalar(select(func.max(AuditRow.number)).where(AuditRow.made < before)) or 0
    query = select(func.count()).select_from(AuditRow).where(AuditRow.number <= through)
    return through, session.scalar(query) or 0


def _tell(session: Session, act: Act, late: Ids, period: timedelta) -> None:
    for project, ids in late.items():
        details = {**audit.listed(ids), "older_than_days": _days(period)}
        what = act.value.partition(".")[2]
        audit.record(session, act, what, project=project, details=details)


def _sums(act: Act, gone: Counter[str]) -> list[Due]:
    kind = act.value.partition(".")[2]
    return [Due(kind, project, count) for project, count in sorted(gone.items()) if count]


def _days(period: timedelta) -> float:
    return period / timedelta(days=1)
