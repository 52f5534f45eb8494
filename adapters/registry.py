"""The registry: which bases, adapters, versions and aliases there are.

The database says what exists and where aliases point; the store holds the content.
A version's number and folder are given in one transaction.
"""

import getpass
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from adapters.bases import Base
from adapters.database import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    BaseRow,
    VersionRow,
    open_database,
    told,
)
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    BaseNotFound,
    InvalidName,
    Quarantined,
    StoreFailed,
    VersionNotFound,
)
from adapters.home import Home
from adapters.manifest import Draft, Manifest
from adapters.names import PRODUCTION, Reference, check_alias, check_name, parse_reference
from adapters.store import Store


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter's numbered, immutable content."""

    name: str
    number: int
    digest: str
    manifest: Manifest
    folder: Path
    state: str
    reason: str

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    name: str
    project: str
    task: str
    created: datetime
    versions: int
    aliases: dict[str, int]


@dataclass(frozen=True, slots=True)
class AliasMove:
    alias: str
    from_number: int | None
    to_number: int
    who: str
    why: str
    moved: datetime


def check_ready(version: Version) -> None:
    """Raises Quarantined when the version failed its proof."""
    if version.state != "ready":
        raise Quarantined(
            f"{version.reference} is quarantined: {version.reason}",
            hint="use a version that passed its proof, or publish sound files again",
            param="model",
        )


class Registry:
    """All of one home folder. Safe to use from several processes and threads."""

    def __init__(self, home: Home, database: Engine, store: Store) -> None:
        self.home = home
        self.store = store
        self._database = database
        self._watch: sqlite3.Connection | None = None

    @classmethod
    def open(cls, root: Path | None = None) -> "Registry":
        """Open the registry of a home folder, creating it when it is new.

        Raises:
            StoreFailed: the folder can't be written or the database is damaged.
        """
        home = Home.find(root)
        try:
            return cls(home, open_database(home.database), Store(home.store))
        except (OSError, DatabaseError) as error:
            raise StoreFailed(
                f"the home folder {home.root} can't be opened: {error}",
                hint="check its owner and free space, or set MODISTE_HOME to another folder",
            ) from error

    # versions

    def publish(self, folder: Path, draft: Draft) -> Version:
        """Make a version of a folder that a trainer wrote; equal content is the same version.

        Raises:
            UnsafeFile, IncompatibleAdapter: the content can't be served.
            InvalidName: the name belongs to an adapter of another task.
            StoreFailed: nothing was published.
        """
        with self.store.staged(folder, draft) as staged, self._write() as session:
            adapter = session.get(AdapterRow, draft.name)
            now = datetime.now(UTC)
            if adapter is None:
                adapter = AdapterRow(
                    name=draft.name, project=draft.project, task=draft.task, created=now
                )
                session.add(adapter)
                session.flush()
            elif adapter.task != draft.task:
                raise InvalidName(
                    f"adapter {draft.name!r} is for {adapter.task}, not {draft.task}",
                    hint="publish under another name",
                    param="name",
                )
            same = session.scalar(
                select(VersionRow).filter_by(adapter=draft.name, digest=staged.digest)
            )
            if same is not None and same.state == "ready":
                return self._version(same)
            last = session.scalar(select(func.max(VersionRow.number)).filter_by(adapter=draft.name))
            number = (last or 0) + 1 if same is None else same.number
            manifest = Manifest(
                **draft.model_dump(), version=number, digest=staged.digest, created=now,
                size=staged.size, files=staged.files,
            )  # fmt: skip
            staged.finish(manifest)
            if same is not None:  # quarantined for damaged files; these are whole again
                same.state, same.reason = "ready", ""
                return self._version(same)
            row = VersionRow(
                adapter=draft.name, number=number, digest=staged.digest, state="ready",
                reason="", created=now,
            )  # fmt: skip
            session.add(row)
            return self._version(row)

    def adapters(self) -> list[AdapterRecord]:
        with self._read() as session:
            rows = session.execute(
                select(VersionRow.adapter, func.count()).group_by(VersionRow.adapter)
            )
            counts: dict[str, int] = {row[0]: row[1] for row in rows}
            aliases: dict[str, dict[str, int]] = {}
            for alias in session.scalars(select(AliasRow)):
                aliases.setdefault(alias.adapter, {})[alias.alias] = alias.number
            return [
                AdapterRecord(
                    row.name, row.project, row.task, row.created,
                    counts.get(row.name, 0), aliases.get(row.name, {}),
                )
                for row in session.scalars(select(AdapterRow).order_by(AdapterRow.name))
            ]  # fmt: skip

    def versions(self, name: str) -> list[Version]:
        """All versions of an adapter, oldest first.

        Raises:
            AdapterNotFound: no adapter of that name.
        """
        with self._read() as session:
            self._adapter(session, check_name(name))
            rows = session.scalars(
                select(VersionRow).filter_by(adapter=name).order_by(VersionRow.number)
            )
            return [self._version(row) for row in rows]

    def find(self, reference: str) -> Version:
        """The version that a reference names now.

        Raises:
            InvalidName, AdapterNotFound, VersionNotFound, AliasNotFound.
        """
        parsed = parse_reference(reference)
        with self._read() as session:
            self._adapter(session, parsed.name)
            return self._version(self._row(session, parsed))

    def quarantine(self, version: Version, reason: str) -> None:
        """Mark a version that failed its proof; it is not served again."""
        with self._write() as session:
            session.execute(
                update(VersionRow)
                .where(VersionRow.adapter == version.name, VersionRow.number == version.number)
                .values(state="quarantined", reason=reason)
            )

    # aliases

    def promote(
        self, reference: str, alias: str = PRODUCTION, *, who: str = "", why: str = ""
    ) -> Version:
        """Point an alias at a version, atomically and on record.

        Raises:
            Quarantined: the version failed its proof.
        """
        check_alias(alias)
        parsed = parse_reference(reference)
        with self._write() as session:
            self._adapter(session, parsed.name)
            row = self._row(session, parsed)
            version = self._version(row)
            check_ready(version)
            now = datetime.now(UTC)
            current = session.get(AliasRow, (row.adapter, alias))
            before = current.number if current is not None else None
            if current is None:
                session.add(
                    AliasRow(adapter=row.adapter, alias=alias, number=row.number, moved=now)
                )
            else:
                current.number, current.moved = row.number, now
            session.add(
                AliasMoveRow(
                    adapter=row.adapter, alias=alias, from_number=before, to_number=row.number,
                    who=who or getpass.getuser(), why=why, moved=now,
                )
            )  # fmt: skip
            return version

    def aliases(self, name: str) -> dict[str, int]:
        with self._read() as session:
            self._adapter(session, check_name(name))
            rows = session.scalars(select(AliasRow).filter_by(adapter=name))
            return {row.alias: row.number for row in rows}

    def all_aliases(self) -> dict[tuple[str, str], int]:
        """Every alias: (adapter, alias) to version number."""
        with self._read() as session:
            return {(r.adapter, r.alias): r.number for r in session.scalars(select(AliasRow))}

    def alias_history(self, name: str) -> list[AliasMove]:
        """Every move of an adapter's aliases, oldest first."""
        with self._read() as session:
            rows = session.scalars(
                select(AliasMoveRow).filter_by(adapter=name).order_by(AliasMoveRow.id)
            )
            return [
                AliasMove(r.alias, r.from_number, r.to_number, r.who, r.why, r.moved) for r in rows
            ]

    def stamp(self) -> int:
        """Another number whenever something wrote to the database; takes microseconds.

        Not for several threads at once.
        """
        if self._watch is None:
            self._watch = sqlite3.connect(
                self.home.database, check_same_thread=False, isolation_level=None
            )
        row: tuple[int] = self._watch.execute("PRAGMA data_version").fetchone()
        return row[0]

    def revision(self) -> int:
        """Grows with every move of an alias."""
        with self._read() as session:
            last: int | None = session.scalar(select(func.max(AliasMoveRow.id)))
            return 0 if last is None else last

    # base models

    def add_base(self, base: Base, *, default: bool = False) -> None:
        """Record a base model; the first becomes the default.

        Raises:
            InvalidName: the name is taken by another content.
        """
        check_name(base.name)
        with self._write() as session:
            row = session.get(BaseRow, base.name)
            if row is not None:
                known = Base.model_validate(row.record)
                if differences := known.ref.differences(base.ref):
                    raise InvalidName(
                        f"base {base.name!r} exists with another {', '.join(differences)}",
                        hint="add it under another name",
                        param="name",
                    )
            first = session.scalar(select(func.count()).select_from(BaseRow)) == 0
            if default:
                session.execute(update(BaseRow).values(is_default=False))
            record = base.model_dump(mode="json")
            if row is None:
                session.add(
                    BaseRow(
                        name=base.name, record=record, is_default=default or first,
                        created=datetime.now(UTC),
                    )
                )  # fmt: skip
            else:
                row.record = record
                row.is_default = default or row.is_default

    def bases(self) -> list[Base]:
        """All base models, the default first."""
        with self._read() as session:
            rows = session.scalars(
                select(BaseRow).order_by(BaseRow.is_default.desc(), BaseRow.name)
            )
            return [Base.model_validate(row.record) for row in rows]

    def base(self, name: str | None = None) -> Base:
        """A base model by name, or the default.

        Raises:
            BaseNotFound: names the known ones.
        """
        known = self.bases()
        for base in known:
            if name is None or base.name == name:
                return base
        wanted = "no base model was added" if name is None else f"no base model {name!r}"
        names = ", ".join(base.name for base in known) or "none"
        raise BaseNotFound(
            wanted, hint=f"known: {names}; add one with `modiste base add SOURCE`", param="base"
        )

    # inside

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with told(), Session(self._database, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        database = self._database.execution_options(writes=True)
        with told(), Session(database, expire_on_commit=False) as session, session.begin():
            yield session

    def _adapter(self, session: Session, name: str) -> AdapterRow:
        row = session.get(AdapterRow, name)
        if row is None:
            raise AdapterNotFound(
                f"no adapter {name!r}", hint="list them with `modiste adapters list`", param="model"
            )
        return row

    def _row(self, session: Session, reference: Reference) -> VersionRow:
        query = select(VersionRow).where(VersionRow.adapter == reference.name)
        number = reference.number
        if reference.alias is not None:
            alias = session.get(AliasRow, (reference.name, reference.alias))
            if alias is None:
                raise AliasNotFound(
                    f"adapter {reference.name!r} has no alias {reference.alias!r}",
                    hint=f"promote a version: `modiste adapters promote {reference.name}@N`",
                    param="model",
                )
            number = alias.number
        if number is not None:
            found = list(session.scalars(query.where(VersionRow.number == number)))
        else:
            found = list(
                session.scalars(query.where(VersionRow.digest.startswith(reference.digest or "")))
            )
        if len(found) != 1:
            wanted = reference.digest if number is None else f"version {number}"
            problem = "is ambiguous" if found else "does not exist"
            raise VersionNotFound(
                f"adapter {reference.name!r}: {wanted} {problem}",
                hint=f"list them with `modiste adapters show {reference.name}`",
                param="model",
            )
        return found[0]

    def _version(self, row: VersionRow) -> Version:
        manifest = self.store.manifest(row.adapter, row.digest)
        folder = self.store.folder(row.adapter, row.digest)
        return Version(row.adapter, row.number, row.digest, manifest, folder, row.state, row.reason)
