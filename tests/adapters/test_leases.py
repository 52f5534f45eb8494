"""What running servers say that they take, and who asks for it."""

import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters import leases
from adapters.compatibility import Takes
from adapters.database import ServerRow
from adapters.errors import IncompatibleAdapter
from adapters.registry import Registry
from tests.adapters.parcels import BASE, A, B, draft, parcel, registry_with

SMALL = Takes(base=BASE, max_rank=16, target_modules=frozenset({"q_proj"}), process=77)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`x` with two versions that every server takes, the first live, and `x@3` of rank 24."""
    registry = registry_with(tmp_path, 2)
    registry.promote("x@1")
    folder = parcel(tmp_path / "wide", r=24)
    tensors = {A: np.ones((24, 8), np.float32), B: np.ones((8, 24), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    registry.publish(folder, draft(folder))
    return registry


def servers(registry: Registry) -> list[str]:
    with registry.database.read() as session:
        return sorted(row.server for row in session.query(ServerRow))


def test_a_promotion_that_a_running_server_cannot_follow_is_refused_by_its_name(
    registry: Registry,
) -> None:
    registry.announce("left", SMALL)
    registry.announce("right", SMALL.model_copy(update={"max_rank": 32}))

    with pytest.raises(IncompatibleAdapter) as caught:
        registry.promote("x@3")
    assert caught.value.param == "version"
    assert "left (process 77) can't take x@3: it has rank 24" in caught.value.message
    assert "right" not in caught.value.message
    assert caught.value.hint.startswith("restart it with max_lora_rank 32")
    assert registry.aliases("x") == {"production": 1}
    assert registry.promote("x@2").number == 2  # that one it takes


def test_force_promotes_all_the_same(registry: Registry) -> None:
    registry.announce("left", SMALL)

    assert registry.promote("x@3", force=True).number == 3
    assert registry.aliases("x") == {"production": 3}


def test_a_canary_is_asked_for_in_the_same_way(registry: Registry) -> None:
    registry.announce("left", SMALL)

    with pytest.raises(IncompatibleAdapter, match="left"):
        registry.start_canary("x@3", 10)
    assert registry.canaries() == {}
    assert registry.start_canary("x@3", 10, force=True).number == 3


def test_the_way_back_is_never_barred(registry: Registry) -> None:
    registry.promote("x@3")
    registry.promote("x@2")
    registry.announce("left", SMALL)

    assert registry.rollback("x").number == 3


def test_publishing_goes_on_and_each_server_is_told_with_its_remedy(registry: Registry) -> None:
    registry.announce("left", SMALL)
    registry.announce("other", SMALL.model_copy(update={"target_modules": frozenset({"o_proj"})}))

    assert registry.misfits(registry.find("x@1")) == [
        "the running server other (process 77) can't take x@1: it adapts q_proj, which is off in "
        "the server: restart it with q_proj in lora_target_modules"
    ]
    assert len(registry.misfits(registry.find("x@3"))) == 2


@pytest.mark.parametrize(
    ("part", "matters"), [("weights", False), ("tokenizer", False), ("name", True), ("dtype", True)]
)
def test_only_servers_of_the_same_base_matter(registry: Registry, part: str, matters: bool) -> None:
    value = "sha256:" + "1" * 64 if not matters else "other"
    other = BASE.model_copy(update={part: value})
    registry.announce("left", SMALL.model_copy(update={"base": other}))

    assert bool(registry.misfits(registry.find("x@3"))) == matters


def test_servers_that_ended_or_were_killed_do_not_matter(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.announce("ended", SMALL)
    registry.withdraw("ended")
    assert servers(registry) == []
    registry.announce("killed", SMALL)
    now = time.time()
    monkeypatch.setattr(leases.time, "time", lambda: now + leases.LEASE_S + 1)

    assert registry.promote("x@3").number == 3
    registry.announce("new", SMALL)
    assert servers(registry) == ["new"]


def test_a_server_that_renews_stays(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for later in (0, 40, 80):
        monkeypatch.setattr(leases.time, "time", lambda later=later: now + later)
        registry.announce("left", SMALL)

    assert servers(registry) == ["left"]
    with pytest.raises(IncompatibleAdapter):
        registry.promote("x@3")
