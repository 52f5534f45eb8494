"""Retirement: a version that is offered no more, by whom and why on record.

Its number, manifest and place in the history stay; its files go with the next collection.
"""

from datetime import UTC, datetime

from sqlalchemy import select

from adapters.audit import Act, current_actor
from adapters.canaries import Canaries
from adapters.database import AliasMoveRow, AliasRow, BaseRow, CanaryRow
from adapters.errors import InvalidInput, Retired, VersionInUse
from adapters.names import parse_reference
from adapters.records import REMOVED, RETIRED, Version


class Retirements(Canaries):
    """What takes versions out of use."""

    def retire(self, reference: str, *, who: str = "", why: str = "") -> Version:
        """Take a version out of use; equal content that is published again brings it back.

        Args:
            reference: `name@7`, `name@sha256:…` or `ft:…`: one that names a version for ever.

        Returns:
            The version as it is now.

        Raises:
            InvalidInput: the reference is a base model's or an alias's.
            NotFound: there is no such version.
            Retired: it was retired before, or its files are gone.
            VersionInUse: an alias or a canary points at it.
        """
        parsed = parse_reference(reference)
        now, who = datetime.now(UTC), who or current_actor().name
        with self._write() as session:
            if parsed.alias is not None:
                if session.get(BaseRow, reference) is None:
                    self._adapter(session, parsed.name)
                raise not_a_version(reference)
            row = self._row(session, parsed)
            known = f"{row.adapter}@{row.number}"
            if row.state in (RETIRED, REMOVED):
                raise Retired(f"{known} is not in use: {row.reason}", param="model")
            pointing = {"adapter": row.adapter, "number": row.number}
            for alias in session.scalars(select(AliasRow).filter_by(**pointing)):
                raise VersionInUse(
                    f"{known} is in use: {row.adapter}@{alias.alias} points at it",
                    hint=f"move the alias first: `modiste adapters promote {row.adapter}@N "
                    f"--alias {alias.alias}`",
                    param="model",
                )
            for canary in session.scalars(select(CanaryRow).filter_by(**pointing)):
                raise VersionInUse(
                    f"{known} is in use: it is the canary of {row.adapter}@{canary.alias}",
                    hint="end the canary first: `modiste adapters end-canary "
                    f"{row.adapter} --alias {canary.alias}`",
                    param="model",
                )
            row.state = RETIRED
            row.reason = f"retired on {now:%Y-%m-%d} by {who}" + (f": {why}" if why else "")
            # its place in the history makes the revision grow, by which servers notice
            record = AliasMoveRow(
                adapter=row.adapter, alias="", from_number=row.number, to_number=row.number,
                who=who, why=why,
            )  # fmt: skip
            self._record(session, record, Act.VERSION_RETIRED)
            return self._version(row)


def not_a_version(reference: str) -> InvalidInput:
    """Why a name that may come to mean something else, or a base's, can't be retired."""
    return InvalidInput(
        f"{reference} can't be deleted: it is a base model or an alias, not a version",
        hint="name the version: ft:…, NAME@7 or NAME@sha256:…",
        param="model",
    )
