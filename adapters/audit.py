"""The audit log: who did what to keys, versions, aliases, files and projects.

An entry is written in its act's own transaction, so neither exists without the other. The
database refuses to change an entry, and to remove one that no later entry says is removed
(`migrations/versions/0007_audit.py`). Entries name things; they hold no secrets and no texts of
requests.
"""

import getpass
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from adapters.database import AuditRow

CALLER, OPERATOR, SERVER = "caller", "operator", "server"
"""Kinds of actors: a caller over HTTP, somebody at the command line, a server by itself."""

ACTOR = "MODISTE_ACTOR"
"""In the environment of a process that was started for somebody: who that is, as JSON."""


MOST_IDS = 100
"""Of things that one act removed; beyond, they are counted."""


class Act(StrEnum):
    """Everything that is on record."""

    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    KEY_LIMITED = "key.limited"
    BASE_ADDED = "base.added"
    VERSION_PUBLISHED = "version.published"
    VERSION_QUARANTINED = "version.quarantined"
    VERSION_RETIRED = "version.retired"
    VERSION_DELETED = "version.deleted"
    ALIAS_PROMOTED = "alias.promoted"
    ALIAS_FORCED = "alias.forced"
    ALIAS_ROLLED_BACK = "alias.rolled_back"
    CANARY_STARTED = "canary.started"
    CANARY_ENDED = "canary.ended"
    FILE_DELETED = "file.deleted"
    FILES_EXPIRED = "files.expired"
    PROJECT_LIMITED = "project.limited"
    PROJECT_DELETING = "project.deleting"
    PROJECT_DELETED = "project.deleted"
    RETENTION_FILES = "retention.files"
    RETENTION_OUTPUTS = "retention.outputs"
    RETENTION_JOB_LOGS = "retention.job_logs"
    RETENTION_USAGE = "retention.usage"
    RETENTION_AUDIT = "retention.audit"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts."""

    kind: str
    name: str
    """The key's name in logs, or the system's user."""
    project: str | None = None
    """A caller's."""
    request_id: str | None = None


_acting: ContextVar[Actor | None] = ContextVar("modiste_actor", default=None)


def act_as(actor: Actor) -> None:
    """For the life of the current task and of what it starts."""
    _acting.set(actor)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """For as long as the block runs."""
    before = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(before)


def current_actor() -> Actor:
    """Who acts now: who was named, else for whom this process was started, else its user."""
    named = _acting.get()
    return named or _of_environment() or Actor(OPERATOR, system_user())


def environment_of(actor: Actor) -> dict[str, str]:
    """What a process needs to know that acts for somebody."""
    return {ACTOR: json.dumps(asdict(actor))}


def system_user() -> str:
    """The user of this process; a container may have one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def record(
    session: Session,
    act: Act,
    what: str,
    *,
    project: str | None = None,
    details: Mapping[str, Any] | None = None,
    by: Actor | None = None,
) -> AuditRow:
    """Add an entry, in the transaction of its act.

    Args:
        what: the thing that was acted on: an id or a reference.
        project: whose it is.
        by: who acted; none: who acts now.
    """
    actor = by or current_actor()
    entry = AuditRow(
        id=f"audit_{secrets.token_hex(12)}", made=datetime.now(UTC), act=act.value, what=what,
        project=project, details=dict(details or {}), kind=actor.kind, who=actor.name,
        caller_project=actor.project, request_id=actor.request_id, through=None,
    )  # fmt: skip
    session.add(entry)
    return entry


def listed(ids: Sequence[str]) -> dict[str, Any]:
    """Details of an act on many things."""
    return {"count": len(ids), "ids": list(ids[:MOST_IDS])}


def _of_environment() -> Actor | None:
    with suppress(KeyError, TypeError, ValueError):
        return Actor(**json.loads(os.environ[ACTOR]))
    return None
