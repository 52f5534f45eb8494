"""API keys and the projects that they belong to.

A key is 32 random characters; the database has its SHA-256 alone, so a copy of it opens
nothing. (A slow hash is for secrets that people choose; guessing 190 bits is hopeless.)
"""

import hashlib
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import Act
from adapters.connect import Database
from adapters.errors import InvalidInput
from adapters.names import check_name
from service.database import KeyRow, ProjectRow
from service.holdings import has_any
from service.limiting.limits import NO_LIMITS, Limits
from service.scopes import DEFAULT, Scope, Scopes, in_order

DEFAULT_PROJECT = "default"
PREFIX = "sk-modiste-"
_ALPHABET = string.ascii_letters + string.digits
_RANDOM = 32
_ID = re.compile(r"key_[A-Za-z0-9]{12}")
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key besides itself."""

    id: str
    project: str
    name: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    scopes: Scopes = DEFAULT
    limits: Limits = NO_LIMITS

    def works(self, now: datetime) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


class Keys:
    """The keys in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        project: str,
        name: str = "",
        lasts: timedelta | None = None,
        scopes: Scopes = DEFAULT,
        limits: Limits = NO_LIMITS,
    ) -> tuple[Key, str]:
        """Make a key; returns it with the secret, which can't be told again.

        Raises:
            InvalidName: the project's name can't be one.
            InvalidInput: the key's name is too long, it would have expired already, or it has
                no scope.
        """
        check_name(project, "project")
        if len(name) > _MAX_NAME or not name.isprintable():
            raise InvalidInput(
                f"name {name[:80]!r} is not one line of at most {_MAX_NAME} characters",
                hint="choose a short name that tells where the key is used", param="name",
            )  # fmt: skip
        if lasts is not None and lasts <= timedelta(0):
            raise InvalidInput(
                "the key would have expired already", hint="give a time above 0", param="expires"
            )
        if not scopes:
            raise InvalidInput(
                "the key would have no scope and open nothing",
                hint=f"give one of {', '.join(Scope)}", param="scope",
            )  # fmt: skip
        secret = PREFIX + _random(_RANDOM)
        now = datetime.now(UTC)
        expires = None if lasts is None else now + lasts
        row = KeyRow(
            id=f"key_{_random(12)}", digest=digest(secret), project=project, name=name,
            scopes=" ".join(in_order(scopes)), created=now, expires=expires, revoked=None,
            **limits.columns(),
        )  # fmt: skip
        with self._database.write() as session:
            of = session.get(ProjectRow, project)
            if of is None:
                session.add(ProjectRow(name=project, created=now, deleting=None))
                session.flush()
            elif of.deleting is not None:
                _reopen(session, of)
            session.add(row)
            told: dict[str, Any] = {
                "name": name, "expires": None if expires is None else expires.isoformat(),
                "scopes": [str(one) for one in in_order(scopes)],
            }  # fmt: skip
            if limits:
                told["limits"] = limits.columns()
            audit.record(session, Act.KEY_CREATED, row.id, project=project, details=told)
        return _key(row), secret

    def all(self, project: str | None = None) -> list[Key]:
        """The keys of a project, or of all, the oldest first; revoked ones too."""
        query = select(KeyRow).order_by(KeyRow.created, KeyRow.id)
        if project is not None:
            query = query.where(KeyRow.project == project)
        with self._database.read() as session:
            return [_key(row) for row in session.scalars(query)]

    def revoke(self, id_: str) -> Key:
        """Let a key open nothing any more; servers notice within seconds.

        Raises:
            InvalidInput: there is no such key.
        """
        with self._database.write() as session:
            row = _row(session, id_)
            if row.revoked is None:
                row.revoked = datetime.now(UTC)
                audit.record(session, Act.KEY_REVOKED, row.id, project=row.project)
            return _key(row)

    def limit(self, id_: str, changes: Mapping[str, int | None]) -> Key:
        """Set some of a key's limits; servers notice within seconds.

        Args:
            changes: by the fields of Limits.

        Raises:
            InvalidInput: there is no such key.
        """
        with self._database.write() as session:
            row = _row(session, id_)
            for name, value in changes.items():
                setattr(row, name, value)
            audit.record(session, Act.KEY_LIMITED, row.id, project=row.project, details=changes)
            return _key(row)

    def limited(self) -> dict[str, Limits]:
        """The limits of keys that have some of their own, by the keys' ids."""
        with self._database.read() as session:
            return {row.id: Limits.of(row) for row in session.scalars(Limits.set_in(KeyRow))}

    def opens(self, id_: str) -> bool:
        """Whether work for a key may go on; those of the settings are not in the database."""
        with self._database.read() as session:
            row = session.get(KeyRow, id_)
            return row is None or _key(row).works(datetime.now(UTC))

    def closed(self) -> frozenset[str]:
        """Projects that are being deleted, or are."""
        query = select(ProjectRow.name).where(ProjectRow.deleting.is_not(None))
        with self._database.read() as session:
            return frozenset(session.scalars(query))

    def by_digest(self) -> dict[bytes, Key]:
        """Every key by the digest of its secret."""
        with self._database.read() as session:
            rows = session.scalars(select(KeyRow))
            return {bytes.fromhex(row.digest): _key(row) for row in rows}


def _reopen(session: Session, of: ProjectRow) -> None:
    """A project that was deleted may begin again once nothing is left of it."""
    if has_any(session, of.name):
        raise InvalidInput(
            f"project {of.name!r} is being deleted",
            hint=f"let `modiste projects delete {of.name}` come to its end, or choose another name",
            param="project",
        )  # fmt: skip
    of.deleting = None


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _row(session: Session, id_: str) -> KeyRow:
    row = session.get(KeyRow, id_) if _ID.fullmatch(id_) else None
    if row is None:
        raise InvalidInput(
            f"no key {id_[:80]!r}", hint="`modiste keys list` shows their ids", param="key"
        )
    return row


def _key(row: KeyRow) -> Key:
    # what an unknown scope would open is not known here
    scopes = frozenset(Scope(name) for name in row.scopes.split() if name in list(Scope))
    return Key(
        row.id, row.project, row.name, row.created, row.expires, row.revoked, scopes,
        Limits.of(row),
    )  # fmt: skip
