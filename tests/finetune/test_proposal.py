"""A plan proposes what fits the data and the machine, and writes a recipe that runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.bases import Base, fingerprint
from adapters.registry import Registry
from finetune import proposal
from finetune.config import read_recipe
from finetune.trial import Estimate
from tests.tiny import make_tiny_base


@pytest.fixture
def plan(task_files: dict[str, Path], finetune: Any) -> Callable[..., Any]:
    def call(task: str, *more: str) -> Any:
        return finetune("plan", task, "--data", str(task_files[task]), *more)

    return call


@pytest.fixture
def second_base(home: Path, base: Base, tmp_path: Path) -> Base:
    """One that passes for a larger one."""
    folder = make_tiny_base(tmp_path / "larger", seed=1)
    larger = base.model_copy(
        update={"name": "larger", "path": folder, "parameters": 900_000,
                "ref": fingerprint(folder, "larger", "float32")}
    )  # fmt: skip
    Registry.open(home).add_base(larger)
    return larger


def test_the_written_recipe_is_accepted_and_has_the_proposed_settings(
    plan: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    code, answer, said = plan("classify", "--write", str(path))
    assert code == 0, said
    chosen = {choice["name"]: choice["value"] for choice in answer["choices"]}
    assert all(choice["reason"] for choice in answer["choices"])
    recipe = read_recipe(str(path))
    assert recipe.base == chosen["base"] == "tiny"
    assert recipe.lora.r == chosen["lora.r"] == 8
    assert recipe.lora.alpha == 16  # alpha / r stays
    assert recipe.training.batch_tokens == chosen["training.batch_tokens"]
    assert recipe.training.dtype == chosen["training.dtype"]
    assert recipe.training.max_length == 64  # the longest example has fewer
    assert answer["estimate"]["seconds"] > 0
    assert answer["estimate"]["peak_bytes"] > 0

    code, answer, _ = plan("classify", "--write", str(path))
    assert (code, answer["error"]["param"]) == (2, "write")


def test_what_is_given_stays(plan: Callable[..., Any]) -> None:
    sets = ("lora.r=4", "training.batch_tokens=96", "training.dtype=bfloat16", "training.epochs=7")
    _, answer, _ = plan("translate", *(p for s in (*sets, "data.source_lang=en",
                        "data.target_lang=fr") for p in ("--set", s)))  # fmt: skip
    training = answer["recipe"]["training"]
    assert (training["batch_tokens"], training["dtype"], training["epochs"]) == (96, "bfloat16", 7)
    assert answer["recipe"]["lora"]["r"] == 4
    reasons = {choice["name"]: choice["reason"] for choice in answer["choices"]}
    assert reasons["lora.r"] == reasons["training.dtype"] == "as asked for"


def test_preferences_are_read_once(
    plan: Callable[..., Any], task_files: dict[str, Path], preferences: Path
) -> None:
    task_files["generate"] = preferences
    code, answer, said = plan("generate", "--set", "training.method=dpo")
    assert code == 0, said
    chosen = {choice["name"]: choice["value"] for choice in answer["choices"]}
    assert chosen["training.epochs"] == 1
    assert chosen["training.max_length"] == 64  # of one answer with its prompt


def test_the_largest_base_is_chosen_that_trains_in_time(
    plan: Callable[..., Any], second_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, answer, _ = plan("generate")
    assert answer["recipe"]["base"] == "larger"
    assert answer["bases"]["tiny"] == "smaller than the chosen one"

    real = proposal.measure

    def slow(recipe: Any, prepared: Any, base: Base, run: Any) -> Estimate:
        found = real(recipe, prepared, base, run)
        return replace(found, seconds=1e5) if base.name == "larger" else found

    monkeypatch.setattr(proposal, "measure", slow)
    _, answer, _ = plan("generate")
    assert answer["recipe"]["base"] == "tiny"
    assert "would train for 27.8 h" in answer["bases"]["larger"]


def test_without_a_base_that_will_do_each_ones_reason_is_told(
    plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, answer, _ = plan("generate", "--hours", "0")
    assert code == 2
    assert "tiny: would train for" in answer["error"]["message"]

    monkeypatch.setattr(proposal, "memory_bytes", lambda _: 900 * 2**20)
    code, answer, _ = plan("generate")
    assert code == 2
    assert "tiny: needs about 0.9 GiB of 0.9" in answer["error"]["message"]


def test_little_memory_and_few_tokens_make_small_batches() -> None:
    batch = proposal._batch
    assert batch("cpu", 1_000_000, 1e9).value == 2048
    assert batch("cpu", 60_000, 1e9).value == 512
    assert batch("cpu", 1_000_000, 700).value == 512
    assert batch("cpu", 1_000, 1e9).value == 256
    assert "do not fit the memory" in batch("cpu", 1_000_000, 700).reason
