"""Rolling an alias back, and its history."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.aliases import _trail
from adapters.database import AliasMoveRow
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    GateFailed,
    InvalidInput,
    InvalidName,
    Quarantined,
    VersionNotFound,
)
from adapters.registry import Registry
from tests.adapters.parcels import draft, parcel, registry_with, verdict


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with three versions."""
    return registry_with(tmp_path, 3)


def test_a_rollback_goes_to_the_version_before_and_is_on_record(registry: Registry) -> None:
    registry.promote("x@1")
    registry.promote("x@3")

    assert registry.previous("x").number == 1
    assert registry.rollback("x", who="ann", why="complaints").number == 1
    assert registry.aliases("x") == {"production": 1}
    last = registry.alias_history("x")[-1]
    assert (last.from_number, last.to_number, last.who, last.why) == (3, 1, "ann", "complaints")
    assert last.rollback


def test_rollbacks_walk_back_and_never_forth(registry: Registry) -> None:
    for reference in ("x@1", "x@2", "x@3"):
        registry.promote(reference)

    assert [registry.rollback("x").number, registry.rollback("x").number] == [2, 1]
    with pytest.raises(VersionNotFound, match="no version before x@1"):
        registry.rollback("x")
    registry.promote("x@3")
    assert registry.rollback("x").number == 1  # 2 was rolled back from


def test_the_same_promotion_twice_is_one_step_back(registry: Registry) -> None:
    for reference in ("x@1", "x@2", "x@2"):
        registry.promote(reference)

    assert registry.rollback("x").number == 1


def test_aliases_roll_back_apart(registry: Registry) -> None:
    for reference in ("x@1", "x@2"):
        registry.promote(reference)
        registry.promote(reference, "staging")

    registry.rollback("x", "staging")

    assert registry.aliases("x") == {"production": 2, "staging": 1}


def test_a_rollback_to_a_quarantined_version_is_refused(registry: Registry) -> None:
    registry.promote("x@1")
    registry.promote("x@2")
    registry.quarantine(registry.find("x@1"), "altered")

    with pytest.raises(Quarantined):
        registry.rollback("x")
    assert registry.aliases("x") == {"production": 2}


def test_what_cannot_be_rolled_back_is_told(registry: Registry) -> None:
    registry.promote("x@1")

    with pytest.raises(AliasNotFound, match="canary"):
        registry.rollback("x", "canary")
    with pytest.raises(AdapterNotFound):
        registry.rollback("y")
    with pytest.raises(AdapterNotFound):
        registry.alias_history("y")
    with pytest.raises(InvalidName):
        registry.rollback("x", "../x")


def test_a_failed_gate_bars_promotion_until_it_is_forced_with_a_reason(
    tmp_path: Path, database: str
) -> None:
    registry = registry_with(tmp_path, 2, failed=2)
    registry.promote("x@1")

    with pytest.raises(GateFailed, match="x@2 is not promoted, gate failed: chrf gained -1"):
        registry.promote("x@2", why="looks fine to me")
    for empty in ("", "  "):
        with pytest.raises(InvalidInput, match="forcing it needs a reason") as refused:
            registry.promote("x@2", force=True, why=empty)
        assert refused.value.param == "why"
    assert (registry.aliases("x"), len(registry.alias_history("x"))) == ({"production": 1}, 1)

    registry.promote("x@2", force=True, who="ann", why="the only one with the new menus")

    last = registry.alias_history("x")[-1]
    assert (last.to_number, last.who) == (2, "ann")
    assert last.why == "forced past its gate: the only one with the new menus"


def test_a_failed_gate_bars_every_alias_and_no_rollback(tmp_path: Path, database: str) -> None:
    registry = registry_with(tmp_path, 2, failed=1)
    with pytest.raises(GateFailed):
        registry.promote("x@1", "staging")
    registry.promote("x@1", force=True, why="nothing else there")
    registry.promote("x@2")

    assert registry.rollback("x").number == 1  # the way out is never barred


def test_a_passed_gate_and_none_need_no_force_and_force_no_reason(
    registry: Registry, tmp_path: Path
) -> None:
    made = parcel(tmp_path / "passed", 9)
    passed = registry.publish(made, draft(made, gate=verdict(passed=True)))

    registry.promote(passed.reference)
    registry.promote("x@1")
    registry.promote("x@2", force=True)

    assert [move.why for move in registry.alias_history("x")] == ["", "", ""]


@given(st.lists(st.one_of(st.integers(1, 4), st.none()), max_size=30))
def test_the_trail_is_that_of_a_plain_stack(actions: list[int | None]) -> None:
    stack: list[int] = []
    moves: list[AliasMoveRow] = []
    for number in actions:
        if number is None and len(stack) > 1:
            stack.pop()
            moves.append(AliasMoveRow(to_number=stack[-1], rollback=True))
        elif number is not None:
            moves.append(AliasMoveRow(to_number=number, rollback=False))
            if stack[-1:] != [number]:
                stack.append(number)

    assert _trail(moves) == stack
