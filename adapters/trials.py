"""What the two sides of a canary answered, on all servers together, and its end by rule."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.audit import SERVER, Act, Actor, acting
from adapters.canaries import Canaries, Key
from adapters.database import AliasRow, CanaryCountRow, CanaryRow, ScoreRow
from adapters.errors import GateFailed, IncompatibleAdapter, InvalidInput
from adapters.gate import overrule
from adapters.leases import check_servers
from adapters.names import Reference
from adapters.rules import Rule, Side, Verdict, is_due, judge

BY_RULE = "rule"
"""Who ended a canary, where nobody did by hand."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A canary that runs, and what both sides answered since it started."""

    number: int
    live: int
    percent: float
    started: datetime
    rule: Rule | None
    sides: Mapping[int, Side]
    """By version number: the live one and the canary."""


class Trials(Canaries):
    """The counts and scores of all canaries."""

    def trials(self) -> dict[Key, Trial]:
        """Every canary that runs."""
        with self._read() as session:
            rows = session.scalars(select(CanaryRow)).all()
            found = {(row.adapter, row.alias): _trial(session, row) for row in rows}
            return {key: trial for key, trial in found.items() if trial is not None}

    def count(self, server: str, key: Key, started: datetime, sides: Mapping[int, Side]) -> None:
        """Keep what a server answered in a canary so far; counts of an ended one are dropped."""
        with self._write() as session:
            row = session.get(CanaryRow, key)
            if row is None or row.started != started:
                return
            for number, side in sides.items():
                seconds: dict[str, Any] = {str(n): count for n, count in side.seconds.items()}
                session.merge(
                    CanaryCountRow(
                        server=server, adapter=key[0], alias=key[1], number=number,
                        started=started, answers=side.answers, errors=side.errors,
                        seconds=seconds,
                    )
                )  # fmt: skip

    def score(
        self, name: str, number: int, score: float, *, request_id: str, who: str = ""
    ) -> None:
        """Keep what somebody thought of one answer; a second opinion replaces the first.

        Args:
            score: 0 (useless) to 1 (as good as can be).
            request_id: of the answer, as its `x-request-id` tells.

        Raises:
            AdapterNotFound, VersionNotFound: no such version.
            InvalidInput: the score is not between 0 and 1.
        """
        if not 0 <= score <= 1:
            raise InvalidInput(f"score is {score:g}", hint="give 0 to 1", param="score")
        with self._write() as session:
            self._adapter(session, name)
            self._row(session, Reference(name, number=number))
            row = session.scalar(select(ScoreRow).filter_by(adapter=name, request_id=request_id))
            if row is None:
                row = ScoreRow(adapter=name, request_id=request_id)
                session.add(row)
            row.number, row.score, row.who, row.given = number, score, who, datetime.now(UTC)

    def judge_canary(self, key: Key) -> Verdict | None:
        """End a canary when its rule says so; None when it goes on."""
        with acting(Actor(SERVER, BY_RULE)), self._write() as session:
            row = session.get(CanaryRow, key)
            if row is None or row.rule is None:
                return None
            trial = _trial(session, row)
            if trial is None or trial.rule is None:
                return None
            state = row.rule
            answers = trial.sides[trial.number].answers
            if not is_due(trial.rule, answers, state["judged_at"]):
                return None
            look = state["looks"] + 1
            verdict = judge(trial.rule, trial.sides[trial.live], trial.sides[trial.number], look)
            row.rule = {**state, "looks": look, "judged_at": answers}
            ended = verdict is not None and self._end_by_rule(session, row, verdict)
            return verdict if ended else None

    def _end_by_rule(self, session: Session, row: CanaryRow, verdict: Verdict) -> bool:
        """Drop a canary, or promote its version: past its gate where the rule came by force."""
        if not verdict.promote:
            self._drop(session, row, BY_RULE, verdict.reason)
            return True
        forced = row.rule is not None and bool(row.rule.get("forced"))
        found = self._numbered(session, row.adapter, row.number)
        version = self._version(found)
        try:
            why = overrule(version, force=forced, why=verdict.reason)
            check_servers(session, version)
        except (GateFailed, IncompatibleAdapter):  # a server started that can't take it
            return False
        act = Act.ALIAS_FORCED if forced else Act.ALIAS_PROMOTED
        self._move(session, found, row.alias, BY_RULE, why, act)
        return True


def _trial(session: Session, row: CanaryRow) -> Trial | None:
    live = session.get(AliasRow, (row.adapter, row.alias))
    if live is None:
        return None
    sides = {live.number: Side(), row.number: Side()}
    counts = select(CanaryCountRow).filter_by(
        adapter=row.adapter, alias=row.alias, started=row.started
    )
    for counted in session.scalars(counts):
        if counted.number in sides:
            sides[counted.number].add(counted.answers, counted.errors, counted.seconds)
    scores = select(ScoreRow).where(
        ScoreRow.adapter == row.adapter,
        ScoreRow.number.in_(sides),
        ScoreRow.given >= row.started,
    )
    for scored in session.scalars(scores):
        sides[scored.number].score(scored.score)
    rule = None if row.rule is None else Rule.model_validate(row.rule["rule"])
    return Trial(row.number, live.number, row.percent, row.started, rule, sides)
