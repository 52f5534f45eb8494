"""Versions from within a run: their names, their gate, and what they are not."""

from pathlib import Path

import pytest

from adapters.errors import GateFailed, InvalidInput, VersionNotFound
from adapters.gate import Gate, not_judged
from adapters.home import Home
from adapters.registry import Registry, Version
from adapters.transfer import export, import_own
from tests.adapters.parcels import BASE, draft, parcel
from tests.service.workbench import base_named


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    return Registry.open(tmp_path / "home")


def publish(
    registry: Registry, value: float, step: int | None, gate: Gate | None = None
) -> Version:
    folder = registry.home.root / f"made-{value}-{step}"
    if not folder.exists():
        parcel(folder, value)
    verdict = None if gate is None else not_judged(gate, "it is from within its run")
    return registry.publish(folder, draft(folder, checkpoint=step, gate=verdict))


def test_a_checkpoint_is_there_by_its_whole_name_alone(registry: Registry) -> None:
    kept, result = publish(registry, 1, 20), publish(registry, 2, None)
    name = kept.fine_tuned_model

    assert name.endswith(f":{kept.digest[7:15]}:ckpt-step-20")
    assert registry.find(name).number == kept.number
    assert registry.find(result.fine_tuned_model).number == result.number
    for wrong in (
        name.removesuffix(":ckpt-step-20"), name.removesuffix("20") + "21",
        f"{result.fine_tuned_model}:ckpt-step-20",
    ):  # fmt: skip
        with pytest.raises(VersionNotFound):
            registry.find(wrong)


def test_equal_content_is_one_checkpoint_but_not_the_runs_result(registry: Registry) -> None:
    kept = publish(registry, 1, 20)
    assert publish(registry, 1, 20) == kept
    result = publish(registry, 1, None)
    assert (kept.number, result.number) == (1, 2)
    assert kept.digest != result.digest
    assert registry.find(result.fine_tuned_model) == result


def test_a_checkpoint_is_not_promoted_past_the_gate_of_its_recipe_in_silence(
    registry: Registry,
) -> None:
    publish(registry, 1, 20, Gate(metric="chrf"))
    with pytest.raises(GateFailed, match="was not judged"):
        registry.promote("x@1")
    with pytest.raises(InvalidInput, match="needs a reason"):
        registry.promote("x@1", force=True)
    registry.promote("x@1", force=True, why="the last one talks too much")
    assert registry.alias_history("x")[-1].why.startswith("forced past its gate")
    publish(registry, 2, 20)  # of a recipe without a gate
    registry.promote("x@2")


def test_a_checkpoint_that_travels_stays_one(registry: Registry, tmp_path: Path) -> None:
    kept = publish(registry, 1, 20)
    export(registry, "x@1", tmp_path / "out")
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert '"checkpoint": 20' in manifest
    publish(registry, 2, None)
    result = registry.find("x@2").folder / "manifest.json"
    assert "checkpoint" not in result.read_text()

    there = Registry.within(Home.find(tmp_path / "there"))
    there.add_base(base_named(BASE.name, tmp_path))
    assert import_own(there, tmp_path / "out").fine_tuned_model == kept.fine_tuned_model
