"""Aliases: names that point at a version and move atomically, every move on record."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import Act
from adapters.database import AliasMoveRow, AliasRow, CanaryCountRow, CanaryRow, VersionRow
from adapters.errors import AliasNotFound, VersionNotFound
from adapters.gate import overrule
from adapters.leases import check_servers
from adapters.names import PRODUCTION, check_alias, check_name, parse_reference
from adapters.records import Records, Version, check_ready


@dataclass(frozen=True, slots=True)
class AliasMove:
    alias: str
    from_number: int | None
    to_number: int
    who: str
    why: str
    moved: datetime
    rollback: bool
    percent: float | None
    """Of a canary: its share from here on, 0 at its end; else the alias itself moved."""
    retired: bool
    """No alias moved: the version `from_number` was taken out of use."""


class Aliases(Records):
    """The aliases of all adapters."""

    def promote(
        self,
        reference: str,
        alias: str = PRODUCTION,
        *,
        who: str = "",
        why: str = "",
        force: bool = False,
    ) -> Version:
        """Point an alias at a version, atomically and on record; its canary ends.

        Args:
            why: the reason; needed past a failed gate.
            force: also where a running server can't take it, and stays on the version before;
                and past a failed gate, which is then on record.

        Raises:
            Quarantined, Retired, Removed: the version can't be served.
            IncompatibleAdapter: a running server can't take it; nothing moved.
            GateFailed: it failed its recipe's gate; nothing moved.
            InvalidInput: it is forced past its gate without a reason.
        """
        check_alias(alias)
        parsed = parse_reference(reference)
        with self._write() as session:
            self._adapter(session, parsed.name)
            row = self._row(session, parsed)
            return self._promote(session, row, alias, who=who, why=why, force=force)

    def rollback(
        self, name: str, alias: str = PRODUCTION, *, who: str = "", why: str = ""
    ) -> Version:
        """Point an alias back at the version before; again, at the one before that.

        Raises:
            AliasNotFound, VersionNotFound: as `previous`.
            Quarantined, Retired, Removed: the version before can't be served.
        """
        with self._write() as session:
            row = self._previous(session, name, alias)
            return self._move(session, row, alias, who, why, Act.ALIAS_ROLLED_BACK)

    def previous(self, name: str, alias: str = PRODUCTION) -> Version:
        """The version to which `rollback` would go back.

        Raises:
            AliasNotFound: there is no such alias.
            VersionNotFound: it pointed at no version before.
        """
        with self._read() as session:
            return self._version(self._previous(session, name, alias))

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
        """Every move of an adapter's aliases, and every retirement, oldest first."""
        with self._read() as session:
            self._adapter(session, check_name(name))
            return [
                AliasMove(
                    m.alias, m.from_number, m.to_number, m.who, m.why, m.moved, m.rollback,
                    m.percent, retired=not m.alias,
                )
                for m in self._moves(session, name)
            ]  # fmt: skip

    def revision(self) -> int:
        """Grows with every move of an alias, change of a canary and retirement."""
        with self._read() as session:
            last: int | None = session.scalar(select(func.max(AliasMoveRow.id)))
            return 0 if last is None else last

    def _promote(
        self, session: Session, row: VersionRow, alias: str, *, who: str, why: str, force: bool
    ) -> Version:
        version = self._version(row)
        check_ready(version)
        why = overrule(version, force=force, why=why)
        if not force:
            check_servers(session, version)
        act = Act.ALIAS_FORCED if force else Act.ALIAS_PROMOTED
        return self._move(session, row, alias, who, why, act)

    def _previous(self, session: Session, name: str, alias: str) -> VersionRow:
        check_alias(alias)
        self._adapter(session, check_name(name))
        trail = _trail(self._moves(session, name, alias))
        hint = f"promote a version: `modiste adapters promote {name}@N`"
        if not trail:
            raise AliasNotFound(
                f"adapter {name!r} has no alias {alias!r}", hint=hint, param="alias"
            )
        if len(trail) == 1:
            raise VersionNotFound(
                f"{name}@{alias} pointed at no version before {name}@{trail[0]}",
                hint=hint, param="alias",
            )  # fmt: skip
        return self._numbered(session, name, trail[-2])

    def _numbered(self, session: Session, name: str, number: int) -> VersionRow:
        return session.scalars(select(VersionRow).filter_by(adapter=name, number=number)).one()

    def _moves(self, session: Session, name: str, alias: str | None = None) -> list[AliasMoveRow]:
        query = select(AliasMoveRow).filter_by(adapter=name).order_by(AliasMoveRow.id)
        return list(session.scalars(query if alias is None else query.filter_by(alias=alias)))

    def _reachable(self, session: Session, alias: AliasRow) -> list[int]:
        """The version that an alias points at, and the one that it would roll back to."""
        return _trail(self._moves(session, alias.adapter, alias.alias))[-2:]

    def _move(
        self, session: Session, row: VersionRow, alias: str, who: str, why: str, act: Act
    ) -> Version:
        version = self._version(row)
        check_ready(version)
        forget_canary(session, row.adapter, alias)
        now = datetime.now(UTC)
        current = session.get(AliasRow, (row.adapter, alias))
        before = current.number if current is not None else None
        if current is None:
            session.add(AliasRow(adapter=row.adapter, alias=alias, number=row.number, moved=now))
        else:
            current.number, current.moved = row.number, now
        move = AliasMoveRow(
            adapter=row.adapter, alias=alias, from_number=before, to_number=row.number,
            who=who, why=why, rollback=act == Act.ALIAS_ROLLED_BACK,
        )  # fmt: skip
        self._record(session, move, act)
        return version

    def _record(self, session: Session, move: AliasMoveRow, act: Act, **details: bool) -> None:
        """Keep a move in the history and in the audit log: now, by who acts or is named."""
        actor = audit.current_actor()
        if move.who and move.who != actor.name:
            actor = audit.Actor(audit.OPERATOR, move.who)
        move.who, move.moved = actor.name, datetime.now(UTC)
        session.add(move)
        of = f"{move.adapter}@{move.alias or move.to_number}"
        told = {
            "from": move.from_number, "to": move.to_number, "percent": move.percent,
            "why": move.why, **details,
        }  # fmt: skip
        told = {key: value for key, value in told.items() if value not in (None, "")}
        project = self._adapter(session, move.adapter).project
        audit.record(session, act, of, project=project, details=told, by=actor)


def forget_canary(session: Session, name: str, alias: str) -> None:
    """An alias's canary, and what was counted for it, go."""
    for table in (CanaryRow, CanaryCountRow):
        session.execute(delete(table).filter_by(adapter=name, alias=alias))


def _trail(moves: list[AliasMoveRow]) -> list[int]:
    """The versions that an alias was promoted to and not rolled back from, the last one live."""
    trail: list[int] = []
    for move in moves:
        if move.percent is not None:
            continue  # of a canary: the alias stayed
        if move.rollback:
            trail.pop()
        elif not trail or trail[-1] != move.to_number:
            trail.append(move.to_number)
    return trail
