"""How many adapters the engine is started with."""

import json
from pathlib import Path

import pytest

from adapters.bases import Base
from adapters.registry import Registry
from service import capacity
from service.capacity import Capacity
from service.settings import Settings
from tests.adapters.parcels import BASE, registry_with

GIB = 2**30
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 32,
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Base:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return Base(
        name="b", path=tmp_path, source="", ref=BASE, context_length=9, architecture="",
        parameters=1, lora=True,
    )  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_with(tmp_path, 12)


def test_a_slots_bytes_are_those_of_the_published_adapters_of_llama_8b(base: Base) -> None:
    """Rank 16 on all linear layers of Llama 3 8B has 41,943,040 parameters."""
    targets = Settings().lora_target_modules
    assert capacity.adapter_bytes(base, 16, targets, "bfloat16") == 2 * 41_943_040
    assert capacity.adapter_bytes(base, 16, targets, "auto") == 4 * 41_943_040  # the base's own
    assert capacity.adapter_bytes(base, 8, ["q_proj"], "float32") == 4 * 32 * 8 * 2 * 4096


def test_small_installations_get_the_least(base: Base, registry: Registry) -> None:
    assert capacity.plan(Settings(), registry, base, 80 * GIB) == Capacity(16, 8, 32)


def test_slots_and_places_follow_the_live_versions(base: Base, registry: Registry) -> None:
    for number in range(1, 12):
        registry.promote(f"x@{number}", f"a{number}")
    registry.promote("x@11", "again")
    registry.start_canary("x@12", 50, "a1")
    assert capacity.plan(Settings(), registry, base, 80 * GIB) == Capacity(16, 12, 48)


def test_memory_bounds_them_but_what_is_live_has_its_place(base: Base, registry: Registry) -> None:
    for number in range(1, 12):
        registry.promote(f"x@{number}", f"a{number}")
    planned = capacity.plan(Settings(), registry, base, 8 * GIB)
    assert (planned.slots, planned.places) == (5, 12)
    assert capacity.plan(Settings(), registry, base, GIB // 8).slots == 1


def test_what_is_set_stays(base: Base, registry: Registry) -> None:
    settings = Settings(max_loras=3, max_resident_versions=5, max_lora_rank=64)
    assert capacity.plan(settings, registry, base, GIB) == Capacity(64, 3, 5)


def test_memory_is_what_the_container_may_use(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")

    assert capacity.memory_bytes(tmp_path / "limit") == 1_000_000
    assert (
        capacity.memory_bytes(tmp_path / "none")
        == capacity.memory_bytes(tmp_path / "missing")
        > 2e9
    )
