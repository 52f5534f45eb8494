"""A version's recipe is repeated on new data or a new base, and the version stays on record."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.bases import Base, fingerprint
from adapters.errors import BaseNotFound, InvalidInput
from adapters.registry import Registry, Version
from finetune.__main__ import main
from finetune.again import repeated_recipe
from finetune.config import check_recipe
from finetune.mistakes import RecipeError
from tests.tiny import make_tiny_base


@pytest.fixture
def first(home: Path, task_files: dict[str, Path], finetune: Any) -> Version:
    """A version that a run published."""
    settings = [
        f"data.train={task_files['generate']}", "training.max_steps=2", "training.batch_tokens=256",
        "training.learning_rate=0.02", "lora.r=4", "evaluation.bootstrap_samples=20",
        "evaluation.max_new_tokens=4",
    ]  # fmt: skip
    code, answer, said = finetune("run", "generate", sets=settings)
    assert code == 0, said
    return Registry.open(home).find(answer["version"])


@pytest.fixture
def new_data(write_lines: Any) -> Path:
    return write_lines("new.jsonl", [{"prompt": f"say {n}", "completion": "no"} for n in range(40)])


@pytest.fixture
def other_base(home: Path, tmp_path: Path, base: Base) -> Base:
    folder = make_tiny_base(tmp_path / "other", seed=5)
    other = base.model_copy(
        update={"name": "other", "path": folder, "ref": fingerprint(folder, "other", "float32")}
    )
    Registry.open(home).add_base(other, default=True)
    return other


def test_again_makes_the_next_version_and_names_its_parent(
    first: Version, new_data: Path, other_base: Base, home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["again", first.reference, "--data", str(new_data), "--home", str(home), "--json"]
    assert main(arguments) == 0
    second = Registry.open(home).find(json.loads(capsys.readouterr().out)["version"])

    assert (second.name, second.number) == (first.name, first.number + 1)
    assert second.manifest.parents == [f"{first.name}@{first.digest}"]
    assert second.manifest.base == first.manifest.base  # not the default by now
    assert second.manifest.datasets != first.manifest.datasets
    before, after = (v.manifest.training["config"] for v in (first, second))
    assert after["data"]["train"] == [str(new_data)]
    changed = ("data", "base", "parent")
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }

    assert main([*arguments, "--resume"]) == 0
    assert "all done already" in capsys.readouterr().err


def test_again_may_change_the_base_and_any_key(
    first: Version, other_base: Base, home: Path
) -> None:
    registry = Registry.open(home)
    recipe = repeated_recipe(registry, first.reference, [], "other", ["lora.r=8"])
    assert (recipe.base, recipe.lora.r) == ("other", 8)
    assert recipe.data.train == first.manifest.training["config"]["data"]["train"]


def test_what_cannot_be_repeated_is_told(
    first: Version, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(home)
    with pytest.raises(InvalidInput, match="needs something new"):
        repeated_recipe(registry, first.reference, [])
    with pytest.raises(RecipeError, match=r"lora\.ranks"):
        repeated_recipe(registry, first.reference, ["x.jsonl"], None, ["lora.ranks=3"])

    monkeypatch.setattr(Registry, "bases", lambda _self: [])
    with pytest.raises(BaseNotFound, match="--base"):
        repeated_recipe(registry, first.reference, ["x.jsonl"])

    first.manifest.training.pop("config")
    monkeypatch.setattr(Registry, "find", lambda _self, _reference: first)
    with pytest.raises(InvalidInput, match="imported or merged"):
        repeated_recipe(registry, first.reference, ["x.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "generate", "--base", "other"], "--base can't be used with: finetune run"),
        (["evaluate", "x@1", "--data", "y", "--base", "other"], "--base can't be used with"),
        (["again", "x@1", "--server", "http://x"], "evaluate NAME@N --data FILE"),
        (["run", "generate", "--hours", "1"], "it is for: finetune plan"),
        (["plan", "generate", "--resume"], "--resume can't be used with: finetune plan"),
        (["plan", "generate", "--executor", "ray"], "--executor can't be used with"),
        (["evaluate", "x@1", "--data", "y", "--workers", "2"], "--workers can't be used with"),
        (["run", "generate", "--data", "x.jsonl", "--data", "y.jsonl"], "'x.jsonl' matches no"),
    ],
)
def test_each_option_belongs_to_its_command(
    arguments: list[str], told: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--home", str(home)]) == 2
    assert told in capsys.readouterr().err


def test_training_starts_from_the_parents_weights(
    first: Version, home: Path, capsys: pytest.CaptureFixture[str], task_files: dict[str, Path]
) -> None:
    data = ["--data", str(task_files["generate"]), "--home", str(home), "--json"]
    sets = ["--set=training.start=parent", "--set=training.learning_rate=1e-9"]
    assert main(["again", first.reference, *data, *sets, "--set=training.max_steps=1"]) == 0
    second = Registry.open(home).find(json.loads(capsys.readouterr().out)["version"])
    name = "adapter_model.safetensors"
    before, after = (load_file(v.folder / name) for v in (first, second))
    assert before.keys() == after.keys()
    for key, weight in before.items():
        torch.testing.assert_close(after[key], weight, atol=1e-6, rtol=0)
    assert any(weight.abs().max() > 1e-3 for key, weight in before.items() if "lora_B" in key)

    assert main(["again", first.reference, *data, *sets, "--set=lora.r=8"]) != 0
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert (error["code"], error["param"]) == ("incompatible_adapter", "lora")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": "parent"}, "needs a parent"),
        ({"start": "parent", "method": "dpo"}, "not for method dpo"),
    ],
)
def test_a_start_that_can_not_be_is_a_mistake(
    first: Version, settings: dict[str, str], says: str, tmp_path: Path
) -> None:
    parent = f"{first.name}@{first.digest}" if "method" in settings else None
    raw = {"name": "x", "task": "generate", "data": {"train": "x.jsonl"}, "training": settings}
    with pytest.raises(RecipeError, match=says):
        check_recipe(raw if parent is None else raw | {"parent": parent}, "recipe", [])
