"""Deletion of projects, with all that they have.

It goes in steps that may each be done again: keys are revoked, work is cancelled and waited for,
then contents go, and after them the rows that name them. The project's own row stays, marked, and
so do its revoked keys, without their names: what still comes late, of a request in flight, is
removed by the next server that looks (`finish`).
"""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import SERVER, Act, Actor, acting
from adapters.database import AuditRow, Table
from adapters.errors import InvalidInput
from adapters.registry import Registry
from service.batches import queue as batches
from service.batches.parts import FOLDER
from service.database import (
    BatchPartRow,
    BatchRow,
    CheckpointRow,
    JobEventRow,
    JobRow,
    KeyRow,
    ProjectRow,
)
from service.errors import InUse
from service.files import Files
from service.holdings import Holdings, all_holdings, has_any
from service.jobs import queue as jobs
from service.keys import DEFAULT_PROJECT
from service.uploads import Uploads

logger = logging.getLogger("modiste.deletion")

AT_ONCE = 100
"""Things of one transaction."""
PATIENCE_S = 900.0
"""For jobs and batches to end, and for servers to let go of versions."""
LOOK_S = 1.0

STAYS = ("projects", "api_keys", "audit")
"""Rows of these stay: a key that goes with its digest could leave a server without any, and open
to everybody; what was done stays on record."""

Tell = Callable[[str], None]


class Deletion:
    """The deletion of projects of one installation."""

    def __init__(self, registry: Registry, files: Files) -> None:
        self._registry, self._files = registry, files
        self._database = registry.database
        self._uploads = Uploads(registry.database, files)

    def delete(
        self, name: str, tell: Tell = logger.info, patience_s: float = PATIENCE_S
    ) -> dict[str, int]:
        """Delete a project; goes on where another call ended.

        Args:
            tell: told of each step.

        Returns:
            What went, and how many of each.

        Raises:
            InvalidInput: there is no such project.
            InUse: its work, or a server that holds a version of it, did not end in time.
            StoreFailed, OSError: the rest is left for the next call.
        """
        held = all_holdings(self._database).get(name)
        if held is None:
            raise InvalidInput(
                f"no project {name[:80]!r}", hint="`modiste projects list` shows them",
                param="project",
            )  # fmt: skip
        self._close(held)
        deadline, gone = time.monotonic() + patience_s, Counter[str]()
        steps: tuple[tuple[str, Callable[[], int]], ...] = (
            ("uploads", lambda: self._uploads.erase(name, AT_ONCE)),
            ("batches", lambda: self._erase_batches(name)),
            ("jobs", lambda: self._erase_jobs(name)),
            ("files", lambda: self._files.erase(name, AT_ONCE)),
        )
        while True:
            self._await_work(name, tell, deadline)
            for what, step in steps:
                while count := step():
                    gone[what] += count
                    tell(f"removed {gone[what]} {what}")
            gone["versions"] += self._erase_versions(name, tell, deadline)
            if self._end(name, gone):
                return dict(+gone)

    def finish(self) -> None:
        """Remove what came late to deleted projects, and what a killed call left.

        Raises:
            StoreFailed, OSError: the rest is left for the next time.
        """
        known = all_holdings(self._database).values()
        left = [held for held in known if held.deleting is not None and not held.is_empty]
        with acting(Actor(SERVER, "deletion")):
            for held in left:
                try:
                    self.delete(held.name, patience_s=0)
                except InUse as error:
                    logger.info("project %s is deleted later: %s", held.name, error.message)

    # the steps

    def _close(self, held: Holdings) -> None:
        """From here on the project is being deleted, and its keys open nothing."""
        now, name = datetime.now(UTC), held.name
        with self._database.write() as session:
            row = session.get(ProjectRow, name)
            if row is None:
                row = ProjectRow(name=name, created=now, deleting=None)
                session.add(row)
            if row.deleting is None:
                row.deleting = now
                details = {"has": held.has}
                audit.record(session, Act.PROJECT_DELETING, name, project=name, details=details)
            works = select(KeyRow).where(KeyRow.project == name, KeyRow.revoked.is_(None))
            for key in session.scalars(works).all():
                key.revoked = now
                audit.record(session, Act.KEY_REVOKED, key.id, project=name)

    def _await_work(self, name: str, tell: Tell, deadline: float) -> None:
        """Cancel jobs and batches, and wait for those that somebody is at."""
        told = ""
        while True:
            with self._database.write() as session:
                now = self._database.now(session)
                busy = jobs.end_all(session, name, now) + batches.end_all(session, name, now)
            if not busy:
                return
            told = _tell_new(tell, told, f"waiting for {len(busy)} to end: {_some(busy)}")
            _pause(deadline, f"{_some(busy)} did not end in time")

    def _erase_batches(self, name: str) -> int:
        contents, mine = self._files.contents, select(BatchRow.id).where(BatchRow.project == name)
        with self._database.read() as session:
            ids = list(session.scalars(mine.limit(AT_ONCE)))
        for id_ in ids:
            folder = f"{FOLDER}/{id_}"
            contents.remove([f"{folder}/{part}" for part in contents.files(folder)])
            contents.remove_folder(folder)
        with self._database.write() as session:
            session.execute(delete(BatchPartRow).where(BatchPartRow.batch.in_(ids)))
            session.execute(delete(BatchRow).where(BatchRow.id.in_(ids)))
        return len(ids)

    def _erase_jobs(self, name: str) -> int:
        mine = select(JobRow.id).where(JobRow.project == name).limit(AT_ONCE)
        with self._database.read() as session:
            ids = list(session.scalars(mine))
        for id_ in ids:
            folder = self._registry.home.jobs / id_
            if folder.is_dir():
                shutil.rmtree(folder)
        with self._database.write() as session:
            session.execute(delete(JobEventRow).where(JobEventRow.job.in_(ids)))
            session.execute(delete(CheckpointRow).where(CheckpointRow.job.in_(ids)))
            session.execute(delete(JobRow).where(JobRow.id.in_(ids)))
        return len(ids)

    def _erase_versions(self, name: str, tell: Tell, deadline: float) -> int:
        total, told = len(self._registry.take_out(name)), ""
        while left := self._registry.erase(name):
            held = self._registry.held(name)
            who = "; ".join(f"{server} has {_some(some)}" for server, some in held.items())
            told = _tell_new(tell, told, f"{left} of {total} versions are still in use: {who}")
            _pause(deadline, f"versions are still in use: {who}")
            self._registry.take_out(name)  # one may have been published meanwhile
        if total:
            tell(f"removed {total} versions")
        return total

    def _end(self, name: str, gone: Counter[str]) -> bool:
        """The last step; False where something came meanwhile."""
        with self._database.write() as session:
            if has_any(session, name, usage=False):
                return False
            for table in reversed(Table.metadata.sorted_tables):
                if "project" in table.c and table.name not in STAYS:
                    done: Any = session.execute(delete(table).where(table.c.project == name))
                    gone[table.name] += done.rowcount
            session.execute(update(KeyRow).where(KeyRow.project == name).values(name=""))
            if +gone or not _is_told(session, name):
                details = {"removed": dict(+gone)}
                audit.record(session, Act.PROJECT_DELETED, name, project=name, details=details)
            row = session.get(ProjectRow, name)
            if row is not None and name == DEFAULT_PROJECT:  # callers without a project go on there
                row.deleting = None
        return True


def _is_told(session: Session, name: str) -> bool:
    """Whether the deletion that is going on came to its end before."""
    told = select(AuditRow.id).join(ProjectRow, ProjectRow.name == AuditRow.what)
    since = AuditRow.made >= ProjectRow.deleting
    query = told.where(AuditRow.act == Act.PROJECT_DELETED, AuditRow.what == name, since)
    return session.scalar(query.limit(1)) is not None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _tell_new(tell: Tell, told: str, now: str) -> str:
    if now != told:
        tell(now)
    return now


def _pause(deadline: float, otherwise: str) -> None:
    if time.monotonic() + LOOK_S > deadline:
        raise InUse(
            otherwise, code="project_in_use",
            hint="end what is at it, or run `modiste projects delete` again, which goes on",
        )  # fmt: skip
    time.sleep(LOOK_S)
