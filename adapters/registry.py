"""The registry: which bases, adapters, versions and aliases there are.

The database says what exists and where aliases point; the store holds the content.
A version's number and folder are given in one transaction.
"""

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import SERVER, Act, Actor, acting
from adapters.bases import Base
from adapters.cached import open_store
from adapters.connect import not_opened, open_database, reason
from adapters.database import AdapterRow, AliasRow, BaseRow, CanaryRow, VersionRow
from adapters.database_url import find_database, sqlite_url
from adapters.erasure import Erasure
from adapters.errors import AdapterError, BaseNotFound, InvalidName, StoreFailed
from adapters.fetches import Fetches
from adapters.home import RESTORING, Home
from adapters.leases import Leases
from adapters.manifest import Draft, Manifest
from adapters.names import check_name, parse_reference
from adapters.prompt import Task
from adapters.records import QUARANTINED, READY, RETIRED, AdapterRecord, Version, check_ready
from adapters.retirement import Retirements
from adapters.store import Staged, Store
from adapters.trials import BY_RULE, Trials
from adapters.watch import watch

__all__ = ["AdapterRecord", "Registry", "Version", "check_ready"]

_MOST_WRONG = 3


class Registry(Erasure, Retirements, Trials, Leases, Fetches):
    """All of one home folder. Safe to use from several processes and threads."""

    def __init__(self, home: Home, database: Engine, store: Store) -> None:
        super().__init__(home, database, store)
        self._watch = watch(database)

    @classmethod
    def open(cls, root: Path | None = None) -> "Registry":
        """Open the registry of a home folder, creating it when it is new.

        Raises:
            InvalidInput: modiste.yaml, `database_url` or `store_url` is wrong.
            StoreFailed: the folder can't be written, the database is damaged or away.
        """
        home = Home.find(root)
        url = find_database(home)
        try:
            home.root.mkdir(parents=True, exist_ok=True)
            if (home.root / RESTORING).exists():
                raise StoreFailed(
                    f"a restore into {home.root} has not come to its end",
                    hint="wait for it, or give `modiste restore` again with the same backup",
                )
            return cls(home, open_database(url), open_store(home))
        except DBAPIError as error:
            if url.get_backend_name() == "sqlite":
                raise _unopened(home, error) from error
            raise not_opened(url, reason(error)) from error
        except OSError as error:
            raise _unopened(home, error) from error

    @classmethod
    def within(cls, home: Home) -> "Registry":
        """The registry that lies in a folder whole, whatever the settings name elsewhere."""
        return cls(home, open_database(sqlite_url(home.database)), Store(home.store))

    # versions

    def publish(self, folder: Path, draft: Draft) -> Version:
        """Make a version of a folder that a trainer wrote; equal content is the same version.

        Raises:
            UnsafeFile, IncompatibleAdapter: the content can't be served.
            InvalidName: the name belongs to an adapter of another task or project.
            StoreFailed: nothing was published.
        """
        with self.store.staged(folder, draft) as staged:
            if (known := self._published(staged)) is not None:
                return known
            staged.upload()
            version = self._number(staged)
        self.make_room(0)
        return version

    def _published(self, staged: Staged) -> Version | None:
        """The ready version of equal content, before anything is sent elsewhere."""
        with self._read() as session:
            draft = staged.draft
            _check_same(session.get(AdapterRow, draft.name), draft.project, draft.task)
            row = _row_of(session, staged)
        return self._version(row) if row is not None and row.state == READY else None

    def _number(self, staged: Staged) -> Version:
        draft, now = staged.draft, datetime.now(UTC)
        with self._write() as session:
            _adapter_for(session, draft.name, draft.project, draft.task, now)
            row = _row_of(session, staged)
            if row is None:
                last = session.scalar(
                    select(func.max(VersionRow.number)).filter_by(adapter=draft.name)
                )
                row = VersionRow(
                    adapter=draft.name, number=(last or 0) + 1, digest=staged.digest, created=now
                )
                session.add(row)
            elif row.state == READY:
                return self._version(row)
            # new, or quarantined for damaged files, retired or removed: these are whole
            told = {"digest": row.digest} | ({"was": row.state} if row.state else {})
            audit.record(
                session, Act.VERSION_PUBLISHED, f"{row.adapter}@{row.number}",
                project=draft.project, details=told,
            )  # fmt: skip
            _finish(staged, row.number, now)
            row.state, row.reason = READY, ""
            return self._version(row)

    def claim(self, name: str, project: str, task: Task) -> None:
        """Let an adapter be of a project and for a task before its first version is published.

        Raises:
            InvalidName: it can't be a name, or belongs to an adapter of another task or project.
        """
        with self._write() as session:
            _adapter_for(session, check_name(name), project, task, datetime.now(UTC))

    def adapters(self) -> list[AdapterRecord]:
        """The adapters that have versions, by name."""
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
                    counts[row.name], aliases.get(row.name, {}),
                )
                for row in session.scalars(select(AdapterRow).order_by(AdapterRow.name))
                if row.name in counts
            ]  # fmt: skip

    def project(self, name: str) -> str:
        """The project that an adapter is of, for ever.

        Raises:
            AdapterNotFound: there is no such adapter.
        """
        with self._read() as session:
            return self._adapter(session, name).project

    def versions(self, name: str) -> list[Version]:
        """All versions of an adapter, oldest first.

        Raises:
            AdapterNotFound: no adapter of that name.
        """
        with self._read() as session:
            self._adapter(session, check_name(name))
            rows = session.scalars(
                select(VersionRow).filter_by(adapter=name).order_by(VersionRow.number)
            ).all()
        return [self._version(row) for row in rows]

    def readable(self) -> tuple[list[Version], list[AdapterError]]:
        """All ready versions whose manifest can be read, and what is wrong with the others."""
        with self._read() as session:
            rows = session.scalars(select(VersionRow).filter_by(state=READY)).all()
        found: list[Version] = []
        wrong: list[AdapterError] = []
        for row in rows:
            try:
                found.append(self._version(row))
            except AdapterError as error:
                wrong.append(error)
            if len(wrong) >= _MOST_WRONG and not found:
                break  # the store is away, and each takes its time to say so
        return found, wrong

    def find(self, reference: str) -> Version:
        """The version that a reference names now.

        Raises:
            InvalidName, AdapterNotFound, VersionNotFound, AliasNotFound.
        """
        parsed = parse_reference(reference)
        with self._read() as session:
            self._adapter(session, parsed.name)
            row = self._row(session, parsed)
        return self._version(row)

    def verified(self, reference: str) -> Version:
        """The version that a reference names, every file checked against its digest now.

        Raises:
            NotFound: no such version.
            Quarantined, Retired, Removed: it is not one to use.
            DigestMismatch, StoreFailed: a file was altered or can't be read.
        """
        version = self.find(reference)
        check_ready(version)
        self.fetch(version)
        return version

    def quarantine(self, version: Version, reason: str) -> None:
        """Mark a version that failed its proof; it is not served again, nor tried out."""
        with acting(Actor(SERVER, BY_RULE)), self._write() as session:
            row = self._numbered(session, version.name, version.number)
            if row.state == RETIRED:
                return
            if (row.state, row.reason) != (QUARANTINED, reason):  # each server may tell it
                audit.record(
                    session, Act.VERSION_QUARANTINED, version.reference,
                    project=self._adapter(session, row.adapter).project,
                    details={"why": reason},
                )  # fmt: skip
            row.state, row.reason = QUARANTINED, reason
            tried = select(CanaryRow).filter_by(adapter=row.adapter, number=row.number)
            for canary in session.scalars(tried).all():
                self._drop(session, canary, BY_RULE, reason)

    @property
    def stamp_waits(self) -> bool:
        """Whether `stamp` waits for a network: not to be called in an event loop then."""
        return self._watch.waits

    def stamp(self) -> int:
        """Another number whenever an alias or a canary may have changed, or a version was retired.

        Cheap to ask.

        Not for several threads at once.

        Raises:
            StoreFailed: the database can't be reached.
        """
        return self._watch.stamp()

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
                audit.record(
                    session,
                    Act.BASE_ADDED,
                    base.name,
                    details={"fingerprint": base.ref.fingerprint},
                )
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


def _unopened(home: Home, error: Exception) -> StoreFailed:
    return StoreFailed(
        f"the home folder {home.root} can't be opened: {error}",
        hint="check its owner and free space, or set MODISTE_HOME to another folder",
    )


def _row_of(session: Session, staged: Staged) -> VersionRow | None:
    return session.scalar(
        select(VersionRow).filter_by(adapter=staged.draft.name, digest=staged.digest)
    )


def _adapter_for(session: Session, name: str, project: str, task: Task, now: datetime) -> None:
    adapter = session.get(AdapterRow, name)
    if adapter is None:
        session.add(AdapterRow(name=name, project=project, task=task, created=now))
        session.flush()
    _check_same(adapter, project, task)


def _check_same(adapter: AdapterRow | None, project: str, task: Task) -> None:
    """An adapter is of one project and for one task, all its versions."""
    if adapter is not None and adapter.project != project:
        raise InvalidName(
            f"the name {adapter.name!r} is taken",
            hint="publish under another name, or with the project that the adapter has",
            param="name",
        )
    if adapter is not None and adapter.task != task:
        raise InvalidName(
            f"adapter {adapter.name!r} is for {adapter.task}, not {task}",
            hint="publish under another name",
            param="name",
        )


def _finish(staged: Staged, number: int, now: datetime) -> None:
    manifest = Manifest(
        **staged.draft.model_dump(), version=number, digest=staged.digest, created=now,
        size=staged.size, files=staged.files,
    )  # fmt: skip
    staged.finish(manifest)
