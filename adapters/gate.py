"""The gate: what a version must show on held-out examples before an alias may point at it.

A recipe states it (`Gate`). The trainer measures the gains and has them judged here; the verdict
stands in the manifest, and whoever moves an alias to the version asks `overrule`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from adapters.errors import AdapterError, GateFailed, InvalidInput
from adapters.languages import parse_tag

if TYPE_CHECKING:
    from adapters.records import Version

Opponent = Literal["base", "live"]


def _tag(value: str) -> str:
    try:
        return parse_tag(value)
    except AdapterError as error:
        raise ValueError(str(error)) from error


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Slice(_Part):
    """Some of the held-out examples; all of them where nothing is named."""

    label: str | None = Field(None, description="classify only: examples of this label")
    language: Annotated[str, AfterValidator(_tag)] | None = Field(
        None, description="examples whose input is found to be in this language, a BCP 47 tag"
    )
    column: str | None = Field(None, description="a column of the data; `value` says which rows")
    value: str | None = Field(None, description="of `column`")

    @model_validator(mode="after")
    def _is_one_slice(self) -> Self:
        if (self.column is None) != (self.value is None):
            raise ValueError("column and value go together")
        if sum(part is not None for part in (self.label, self.language, self.column)) > 1:
            raise ValueError("a slice is named by label, by language or by column: one of them")
        return self

    def __str__(self) -> str:
        if self.label is not None:
            return f"label {self.label!r}"
        if self.language is not None:
            return f"language {self.language}"
        return "" if self.column is None else f"{self.column} = {self.value!r}"


class Kept(Slice):
    """A metric that must not get worse by more than its margin."""

    metric: str = Field(description="a metric of the task")
    margin: float = Field(ge=0, description="by how much it may be worse, in the metric's unit")


class Gate(Slice):
    """What a recipe asks of its version: a gain, and what must not be lost for it."""

    metric: str = Field(description="the metric that must be better")
    over_base: float = Field(0.0, description="the gain over the base is surely above this")
    over_live: float | None = Field(
        0.0,
        description="the gain over the live version is surely above this, where there is one; "
        "none: not compared",
    )
    confidence: float = Field(0.95, gt=0.5, le=0.999, description="how sure, for each comparison")
    least_examples: int = Field(20, ge=2, description="fewer examples, and a comparison fails")
    keep: list[Kept] = Field([], description="metrics that must not get worse, with a margin")

    @property
    def columns(self) -> set[str]:
        """Columns of the data that its slices need."""
        return {part.column for part in (self, *self.keep) if part.column is not None}


@dataclass(frozen=True, slots=True)
class Gain:
    """A metric of two models on the same examples; a gain is positive where ours is better."""

    ours: float
    other: float
    gain: float
    bound: float
    """Not less than this, with the gate's confidence."""
    examples: int


Measure = Callable[[str, Slice, Opponent], Gain | str]
"""Of a metric on a slice: the gain over an opponent, or why it can't be told."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Record):
    """One comparison: `bound` had to be above `limit`, or not below it for what is kept."""

    metric: str
    slice: str = ""
    against: Opponent
    kept: bool
    limit: float
    passed: bool
    examples: int = 0
    ours: float | None = None
    other: float | None = None
    gain: float | None = None
    bound: float | None = None
    missing: str = Field("", description="why nothing could be compared")


class Verdict(_Record):
    """What came of a gate."""

    passed: bool
    reason: str = Field(description="one sentence with the figures that decided")
    confidence: float
    checks: list[Check]


def judge(gate: Gate, live: str | None, measure: Measure) -> Verdict:
    """Judge a version by its recipe's gate; every comparison must hold, so none is corrected.

    Args:
        live: the version that is live, as people call it; None where there is none.
    """
    parts: list[Gate | Kept] = [gate, *gate.keep]
    checks = [
        _check(gate, part, against, measure) for part in parts for against in _opponents(gate, live)
    ]
    failed = [check for check in checks if not check.passed]
    told = failed or [check for check in checks if not check.kept]
    said = [_sentence(check, gate, live) for check in told]
    kept = len(checks) - len(told)
    if not failed and kept:
        said.append(f"nothing else got worse beyond its margin ({kept} compared)")
    outcome = "failed" if failed else "passed"
    return Verdict(
        passed=not failed, reason=f"gate {outcome}: {'; '.join(said)}",
        confidence=gate.confidence, checks=checks,
    )  # fmt: skip


def not_judged(gate: Gate, why: str) -> Verdict:
    """Of a version that its recipe's gate never looked at: it has not passed."""
    reason = f"gate not passed: {why}, and was not judged"
    return Verdict(passed=False, reason=reason, confidence=gate.confidence, checks=[])


def _opponents(gate: Gate, live: str | None) -> Iterator[Opponent]:
    yield "base"
    if live is not None and gate.over_live is not None:
        yield "live"


def _check(gate: Gate, part: Gate | Kept, against: Opponent, measure: Measure) -> Check:
    found = measure(part.metric, part, against)
    kept = isinstance(part, Kept)
    limit = -part.margin if isinstance(part, Kept) else _asked(part, against)
    where = str(part)
    if isinstance(found, str):
        return _not_compared(part.metric, where, against, limit, found, kept=kept)
    if found.examples < gate.least_examples:
        reason = f"{found.examples} examples there, gate.least_examples is {gate.least_examples}"
        return _not_compared(part.metric, where, against, limit, reason, kept=kept)
    if not all(map(isfinite, (found.ours, found.other, found.gain, found.bound))):
        reason = "a figure is no finite number"
        return _not_compared(part.metric, where, against, limit, reason, kept=kept)
    return Check(
        metric=part.metric, slice=where, against=against, kept=kept, limit=limit,
        passed=found.bound >= limit if kept else found.bound > limit,
        examples=found.examples, ours=found.ours, other=found.other, gain=found.gain,
        bound=found.bound,
    )  # fmt: skip


def _asked(gate: Gate, against: Opponent) -> float:
    if against == "live" and gate.over_live is not None:
        return gate.over_live
    return gate.over_base


def _not_compared(
    metric: str, where: str, against: Opponent, limit: float, missing: str, *, kept: bool
) -> Check:
    return Check(
        metric=metric, slice=where, against=against, kept=kept, limit=limit, passed=False,
        missing=missing,
    )  # fmt: skip


def _sentence(check: Check, gate: Gate, live: str | None) -> str:
    where = f" on {check.slice}" if check.slice else ""
    opponent = "the base" if check.against == "base" else f"the live version {live}"
    if check.gain is None or check.bound is None:
        return f"{check.metric}{where} can't be compared with {opponent}: {check.missing}"
    asked = (
        f"worse by {-check.limit:g} at most is allowed" if check.kept
        else f"more than {check.limit:g} is asked for"
    )  # fmt: skip
    return (
        f"{check.metric}{where} is {check.ours:.3g}, {check.other:.3g} for {opponent}: "
        f"{_change(check.gain)}, and with {gate.confidence * 100:g} % confidence "
        f"{_change(check.bound)} at {'least' if check.bound >= 0 else 'worst'}, where {asked} "
        f"({check.examples} examples)"
    )


def _change(gain: float) -> str:
    if gain == 0:
        return "no better"
    return f"{'better' if gain > 0 else 'worse'} by {abs(gain):.3g}"


def overrule(version: "Version", *, force: bool, why: str) -> str:
    """What to write into an alias's history when it is to point at a version.

    Raises:
        GateFailed: the version has not passed its gate, and `force` is not given.
        InvalidInput: it is forced without a reason.
    """
    verdict = version.manifest.gate
    if verdict is None or verdict.passed:
        return why
    if not force:
        raise GateFailed(
            f"{version.reference} is not promoted, {verdict.reason}",
            hint="train a better version; or force it with a reason, which stays in the history",
            param="version",
        )
    if not why.strip():
        raise InvalidInput(
            f"{version.reference} has not passed its gate, so forcing it needs a reason",
            hint="give `why` (on the command line `--why TEXT`); it stays in the history",
            param="why",
        )
    return f"{FORCED}{why}"


FORCED = "forced past its gate: "
"""Begins the reason of a move that a failed gate would have stopped."""
