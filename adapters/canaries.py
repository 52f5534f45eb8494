"""Canaries: a share of an alias's requests goes to another version, until it is ended."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.aliases import Aliases, forget_canary
from adapters.audit import Act
from adapters.database import AliasMoveRow, AliasRow, CanaryRow
from adapters.errors import AliasNotFound, InvalidInput
from adapters.gate import overrule
from adapters.leases import check_servers
from adapters.names import PRODUCTION, check_alias, check_name, parse_reference
from adapters.records import Version, check_ready
from adapters.rules import Rule

Key = tuple[str, str]
"""Adapter and alias."""


@dataclass(frozen=True, slots=True)
class Canary:
    """The version that is tried out, and its share of the alias's requests."""

    number: int
    percent: float
    started: datetime = field(default=datetime.fromtimestamp(0, UTC), compare=False)


class Canaries(Aliases):
    """The canaries of all aliases; a promotion or rollback of the alias ends its canary."""

    def start_canary(  # noqa: PLR0913  # share and rule, and who, why and how
        self,
        reference: str,
        percent: float,
        alias: str = PRODUCTION,
        *,
        rule: Rule | None = None,
        who: str = "",
        why: str = "",
        force: bool = False,
    ) -> Version:
        """Give a version a share of an alias's requests, or another share.

        Args:
            rule: when it ends by itself; none: the one it has, or by hand only.

        Raises:
            AliasNotFound: the alias points at nothing yet.
            InvalidInput: the share is not between 0 and 100, or the alias points at the version.
            Quarantined, Retired, Removed: the version can't be served.
            IncompatibleAdapter: a running server can't take it, and `force` is not given.
            GateFailed: the rule would promote a version that failed its gate, and `force` is not
                given; without `promote_after` it may be tried out.
        """
        check_alias(alias)
        if not 0 < percent < 100:
            raise InvalidInput(
                f"percent is {percent:g}", hint="give more than 0 and less than 100",
                param="percent",
            )  # fmt: skip
        parsed = parse_reference(reference)
        with self._write() as session:
            row = self._row(session, parsed)
            version = self._version(row)
            check_ready(version)
            promotes = rule is not None and rule.promote_after is not None
            if promotes:
                why = overrule(version, force=force, why=why)
            if not force:
                check_servers(session, version)
            live = self._pointing(session, row.adapter, alias)
            if live.number == row.number:
                raise InvalidInput(
                    f"{row.adapter}@{alias} already points at {version.reference}",
                    hint="try out another version", param="version",
                )  # fmt: skip
            canary = session.get(CanaryRow, (row.adapter, alias))
            if canary is None or canary.number != row.number:
                forget_canary(session, row.adapter, alias)
                canary = CanaryRow(
                    adapter=row.adapter, alias=alias, number=row.number, rule=None,
                    started=datetime.now(UTC),
                )  # fmt: skip
                session.add(canary)
            canary.percent = percent
            if rule is not None:
                canary.rule = {
                    "rule": rule.model_dump(), "looks": 0, "judged_at": 0,
                    "forced": force and promotes,
                }  # fmt: skip
            share = Canary(row.number, percent)
            self._record_share(session, live, share, who, why, force=force)
            return version

    def end_canary(
        self,
        name: str,
        alias: str = PRODUCTION,
        *,
        promote: bool,
        who: str = "",
        why: str = "",
        force: bool = False,
    ) -> Version:
        """Promote the canary's version, or give all requests back to the version before.

        Args:
            force: promote as `promote` does by force.

        Returns:
            The version at which the alias points now.

        Raises:
            AliasNotFound: the alias has no canary.
            Quarantined, Retired, Removed: the version to promote can't be served.
            IncompatibleAdapter: a running server can't take it.
            GateFailed: it failed its gate.
            InvalidInput: it is forced past its gate without a reason.
        """
        check_alias(alias)
        with self._write() as session:
            self._adapter(session, check_name(name))
            canary = session.get(CanaryRow, (name, alias))
            if canary is None:
                raise AliasNotFound(
                    f"{name}@{alias} has no canary",
                    hint=f"start one: `modiste adapters canary {name}@N --percent 10`",
                    param="alias",
                )
            if promote:
                row = self._numbered(session, name, canary.number)
                return self._promote(session, row, alias, who=who, why=why, force=force)
            return self._drop(session, canary, who, why)

    def canaries(self) -> dict[Key, Canary]:
        """Every canary: (adapter, alias) to version number and share."""
        with self._read() as session:
            rows = session.scalars(select(CanaryRow))
            return {(r.adapter, r.alias): Canary(r.number, r.percent, r.started) for r in rows}

    def _drop(self, session: Session, canary: CanaryRow, who: str, why: str) -> Version:
        name, alias, number = canary.adapter, canary.alias, canary.number
        forget_canary(session, name, alias)
        live = self._pointing(session, name, alias)
        self._record_share(session, live, Canary(number, 0.0), who, why)
        return self._version(self._numbered(session, name, live.number))

    def _pointing(self, session: Session, name: str, alias: str) -> AliasRow:
        live = session.get(AliasRow, (name, alias))
        if live is None:
            raise AliasNotFound(
                f"adapter {name!r} has no alias {alias!r} that could share its requests",
                hint=f"promote a version first: `modiste adapters promote {name}@N`",
                param="alias",
            )
        return live

    def _record_share(
        self, session: Session, live: AliasRow, share: Canary, who: str, why: str,
        *, force: bool = False,
    ) -> None:  # fmt: skip
        move = AliasMoveRow(
            adapter=live.adapter, alias=live.alias, from_number=live.number,
            to_number=share.number, who=who, why=why, percent=share.percent,
        )  # fmt: skip
        act = Act.CANARY_STARTED if share.percent else Act.CANARY_ENDED
        self._record(session, move, act, **({"forced": True} if force else {}))
