"""Canaries in the registry: shares, their ends, and what stays on record."""

from pathlib import Path

import pytest

from adapters.canaries import Canary
from adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    GateFailed,
    InvalidInput,
    Quarantined,
)
from adapters.registry import Registry
from tests.adapters.parcels import registry_with

KEY = ("x", "production")


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with three versions, the second live after the first."""
    registry = registry_with(tmp_path, 3)
    for reference in ("x@1", "x@2"):
        registry.promote(reference)
    return registry


def test_a_share_is_given_changed_and_given_back_on_record(registry: Registry) -> None:
    registry.start_canary("x@3", 10, who="ann", why="new menus")
    assert registry.canaries() == {KEY: Canary(3, 10)}
    registry.start_canary("x@3", 50)
    assert registry.canaries() == {KEY: Canary(3, 50)}

    assert registry.end_canary("x", promote=False).number == 2

    assert registry.canaries() == {}
    assert registry.aliases("x") == {"production": 2}
    moves = [(m.from_number, m.to_number, m.percent) for m in registry.alias_history("x")]
    assert moves[2:] == [(2, 3, 10), (2, 3, 50), (2, 3, 0)]


def test_a_promotion_of_the_canary_is_one_step_to_roll_back(registry: Registry) -> None:
    registry.start_canary("x@3", 10)

    assert registry.end_canary("x", promote=True).number == 3

    assert (registry.canaries(), registry.aliases("x")) == ({}, {"production": 3})
    assert registry.rollback("x").number == 2


def test_a_failed_gate_lets_a_canary_be_tried_out_but_not_promoted(
    tmp_path: Path, database: str
) -> None:
    registry = registry_with(tmp_path, 2, failed=2)
    registry.promote("x@1")
    registry.start_canary("x@2", 10)

    with pytest.raises(GateFailed):
        registry.end_canary("x", promote=True, why="looks fine")
    with pytest.raises(InvalidInput, match="needs a reason"):
        registry.end_canary("x", promote=True, force=True)
    assert registry.canaries() == {KEY: Canary(2, 10)}

    assert registry.end_canary("x", promote=True, force=True, why="users prefer it").number == 2
    assert registry.alias_history("x")[-1].why == "forced past its gate: users prefer it"


def test_a_canary_of_a_failed_gate_is_dropped_like_any_other(tmp_path: Path, database: str) -> None:
    registry = registry_with(tmp_path, 2, failed=2)
    registry.promote("x@1")
    registry.start_canary("x@2", 10)

    assert registry.end_canary("x", promote=False).number == 1


@pytest.mark.parametrize("ends", ["promotion", "rollback"])
def test_a_move_of_the_alias_ends_its_canary(registry: Registry, ends: str) -> None:
    registry.start_canary("x@3", 10)
    registry.promote("x@1", "staging")
    assert KEY in registry.canaries()

    if ends == "promotion":
        registry.promote("x@1")
    else:
        assert registry.rollback("x").number == 1

    assert registry.canaries() == {}


def test_every_change_of_a_canary_is_seen_by_who_follows(registry: Registry) -> None:
    seen = [registry.revision()]
    registry.start_canary("x@3", 10)
    seen.append(registry.revision())
    registry.start_canary("x@3", 20)
    seen.append(registry.revision())
    registry.end_canary("x", promote=False)
    seen.append(registry.revision())

    assert seen == sorted(set(seen))


def test_a_canary_is_not_collected(registry: Registry) -> None:
    registry.start_canary("x@3", 10)

    assert registry.collect(keep=0, older_than_days=0).versions == []
    registry.end_canary("x", promote=False)
    assert registry.collect(keep=0, older_than_days=0).versions == ["x@3"]


@pytest.mark.parametrize("percent", [0, 100, -1, float("nan")])
def test_a_share_that_is_none_or_all_is_refused(registry: Registry, percent: float) -> None:
    with pytest.raises(InvalidInput, match="percent is"):
        registry.start_canary("x@3", percent)


def test_what_can_have_no_canary_is_told(registry: Registry) -> None:
    registry.quarantine(registry.find("x@1"), "altered")

    with pytest.raises(InvalidInput, match="already points at x@2"):
        registry.start_canary("x@2", 10)
    with pytest.raises(AliasNotFound, match="promote a version first"):
        registry.start_canary("x@3", 10, "staging")
    with pytest.raises(Quarantined):
        registry.start_canary("x@1", 10)
    with pytest.raises(AliasNotFound, match="no canary"):
        registry.end_canary("x", promote=True)
    with pytest.raises(AdapterNotFound):
        registry.end_canary("y", promote=True)
