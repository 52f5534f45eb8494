"""Retirement: what is refused, what is on record, what comes back, what is collected."""

import time
from pathlib import Path

import pytest

from adapters.errors import (
    AdapterNotFound,
    InvalidInput,
    Removed,
    Retired,
    VersionInUse,
    VersionNotFound,
)
from adapters.registry import Registry
from adapters.transfer import export
from tests.adapters.parcels import draft, parcel, registry_with


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with three versions."""
    return registry_with(tmp_path, 3)


def test_a_retired_version_is_used_for_nothing_and_says_why(
    registry: Registry, tmp_path: Path
) -> None:
    registry.promote("x@1")
    retired = registry.retire("x@2", who="ann", why="too rude")

    assert (retired.reference, retired.state) == ("x@2", "retired")
    assert registry.find("x@2").reason.endswith("by ann: too rude")
    uses = (
        lambda: registry.promote("x@2"), lambda: registry.start_canary("x@2", 10),
        lambda: registry.lease("here", retired), lambda: registry.verified("x@2"),
        lambda: export(registry, "x@2", tmp_path / "x.tar"),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(Retired, match="too rude"):
            use()
    assert registry.aliases("x") == {"production": 1}


def test_a_retirement_stands_in_the_history_and_moves_no_alias(registry: Registry) -> None:
    registry.promote("x@1")
    registry.promote("x@3")
    registry.retire("x@2", who="ann", why="too rude")

    last = registry.alias_history("x")[-1]
    assert (last.retired, last.from_number, last.who, last.why) == (True, 2, "ann", "too rude")
    assert [move.retired for move in registry.alias_history("x")] == [False, False, True]
    assert registry.aliases("x") == {"production": 3}
    assert registry.rollback("x").number == 1


@pytest.mark.parametrize("form", ["number", "digest", "fine-tuned"])
def test_a_version_is_retired_by_any_name_that_it_has_for_ever(
    registry: Registry, form: str
) -> None:
    version = registry.find("x@2")
    names = {
        "number": "x@2", "digest": f"x@{version.digest}", "fine-tuned": version.fine_tuned_model
    }  # fmt: skip

    registry.retire(names[form])

    assert [v.state for v in registry.versions("x")] == ["ready", "retired", "ready"]
    with pytest.raises(Retired):
        registry.retire(names[form])


def test_what_an_alias_or_a_canary_points_at_stays(registry: Registry) -> None:
    registry.promote("x@1", "staging")
    registry.start_canary("x@2", 10, "staging")

    with pytest.raises(VersionInUse, match=r"x@staging points at it.*move the alias first"):
        registry.retire("x@1")
    with pytest.raises(VersionInUse, match=r"the canary of x@staging.*end the canary first"):
        registry.retire("x@2")
    registry.promote("x@3", "staging")
    registry.retire("x@1")
    registry.retire("x@2")
    assert [v.state for v in registry.versions("x")] == ["retired", "retired", "ready"]


def test_a_name_that_may_come_to_mean_something_else_is_refused(registry: Registry) -> None:
    registry.promote("x@1")
    for reference in ("x", "x@production"):
        with pytest.raises(InvalidInput, match="not a version"):
            registry.retire(reference)
    for reference, error in (("nobody", AdapterNotFound), ("x@9", VersionNotFound)):
        with pytest.raises(error):
            registry.retire(reference)


def test_equal_content_that_is_published_again_is_ready_again(
    registry: Registry, tmp_path: Path
) -> None:
    registry.retire("x@2")
    registry.collect()
    folder = parcel(tmp_path / "again", 2)

    back = registry.publish(folder, draft(folder))

    assert (back.reference, back.state, back.reason) == ("x@2", "ready", "")
    registry.promote("x@2")
    assert registry.verified("x").number == 2


def test_files_of_a_retired_version_go_at_once_unless_a_server_holds_them(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reference in ("x@3", "x@2", "x@1"):
        registry.promote(reference)
    registry.lease("here", registry.find("x@3"))
    registry.retire("x@2")  # the way back leads there
    registry.retire("x@3")

    assert registry.collect(keep=3).versions == ["x@2"]
    with pytest.raises(Removed):
        registry.promote("x@2")
    with pytest.raises(Retired):
        registry.retire("x@2")
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert registry.collect(keep=3).versions == ["x@3"]
    assert {p.name for p in registry.find("x@3").folder.iterdir()} == {"manifest.json"}


def test_a_retired_version_takes_no_place_of_those_that_are_kept(registry: Registry) -> None:
    registry.retire("x@3")

    assert registry.collect(keep=1, older_than_days=0).versions == ["x@3", "x@1"]
    assert registry.collect(keep=1, older_than_days=0).versions == []
    assert registry.find("x@2").state == "ready"


def test_a_retirement_is_noticed_as_a_move_is(registry: Registry) -> None:
    before = registry.revision(), registry.stamp()

    Registry.open(registry.home.root).retire("x@1")

    assert registry.revision() > before[0]
    assert registry.stamp() != before[1]


def test_a_proof_that_fails_late_does_not_bring_a_retired_version_back(
    registry: Registry,
) -> None:
    version = registry.find("x@1")
    registry.retire("x@1")
    registry.quarantine(version, "proof failed")

    assert registry.find("x@1").state == "retired"
