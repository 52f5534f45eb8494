"""What a sweep varies is read as people write it, and refused with every mistake at once."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config import read_recipe
from finetune.mistakes import RecipeError
from finetune.sweep_config import Sought, aim_of, read_sweep
from finetune.sweep_space import Choices, Range


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Write a recipe with a section `sweep`; returns its path."""

    def write(**parts: Any) -> str:
        raw = {
            "name": "a", "task": "classify",
            "data": {"train": "x.jsonl", "validation_fraction": 0.2}, **parts,
        }  # fmt: skip
        path = tmp_path / "a.yaml"
        path.write_text(yaml.safe_dump(raw))
        return str(path)

    return write


def over(recipe: str, *axes: str, **more: Any) -> Sought:
    return read_sweep(recipe, [], list(axes), more)


def test_ranges_take_the_kind_of_their_key_and_choices_any_value(recipe: Any) -> None:
    found = over(
        recipe(), "training.learning_rate=1e-4..1e-3:log", "lora.r=4..64", "lora.alpha=8,16.5",
        "lora.target_modules=[q_proj],[q_proj, v_proj]",
    ).space.axes  # fmt: skip

    assert found["training.learning_rate"] == Range(1e-4, 1e-3, log=True)
    assert found["lora.r"] == Range(4, 64, whole=True)
    assert found["lora.alpha"] == Choices(("8", "16.5"))
    assert found["lora.target_modules"].ends == (["q_proj"], ["q_proj", "v_proj"])


def test_options_stand_above_the_section_and_other_commands_pass_it_over(recipe: Any) -> None:
    path = recipe(
        sweep={"over": {"lora.r": [4, 8], "lora.alpha": "8,16"}, "trials": 7, "minutes": 5}
    )
    found = over(path, "lora.r=16,32", trials=3, minutes=None)

    assert found.space.told() == {"lora.r": "16, 32", "lora.alpha": "8, 16"}
    assert (found.sweep.trials, found.sweep.minutes, found.sweep.prune) == (3, 5, True)
    assert found.recipe == read_recipe(path)


@pytest.mark.parametrize(
    ("axis", "key", "problem", "remedy"),
    [
        ("training.learning_rat=1,2", "training.learning_rat", "no key", "learning_rate"),
        ("training.learning_rate=1e-3..1e-4", "training.learning_rate", "empty range", "smaller"),
        ("training.learning_rate=0..1:log", "training.learning_rate", "no logarithm", "above 0"),
        ("training.learning_rate=1e-4..1e-3:lin", "training.learning_rate", "no scale", ":log"),
        ("training.learning_rate=1e-4..", "training.learning_rate", "no range", "1e-4..1e-3"),
        ("training.learning_rate=0.5..2.5", "training.learning_rate", "less than or equal", "peak"),
        ("lora.r=1.5..8", "lora.r", "whole numbers", "whole ends"),
        ("lora.r=8,many", "lora.r", "valid integer", "rank"),
        ("lora.r=8,8", "lora.r", "twice", "once"),
        ("lora.r=8", "lora.r", "no choice", "--set"),
        ("lora.use_rslora=0..1", "lora.use_rslora", "no number", "list values"),
        ("training.max_length=64,128", "training.max_length", "can't be varied", "recipe"),
        ("training.beta=0.1,0.2", "training.beta", "loss means", "--no-prune"),
        ("data.train=a,b", "data.train", "can't be varied", "training.learning_rate"),
        ("lora.r", "--over", "neither range nor choices", "--over training"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_recipe_is_told_with_key_value_and_remedy(
    recipe: Any, axis: str, key: str, problem: str, remedy: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        over(recipe(), axis)

    (mistake,) = caught.value.mistakes
    assert mistake.key == key
    assert str(mistake.value) in axis
    assert problem in mistake.problem
    assert remedy in mistake.remedy


def test_all_mistakes_of_a_sweep_are_told_at_once(recipe: Any) -> None:
    path = recipe(data={"train": "x.jsonl"}, sweep={"over": {"lora.rr": [1, 2]}, "trial": 3})
    with pytest.raises(RecipeError) as caught:
        over(path, trials=0)
    assert {m.key for m in caught.value.mistakes} == {
        "sweep.trial", "sweep.trials", "data.validation", "lora.rr",
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"sweep\.over: says what is varied"):
        over(recipe())


def test_the_figure_is_the_gates_else_best_by_else_the_tasks_first(recipe: Any) -> None:
    axis = "lora.r=4,8"
    gate = {"metric": "recall", "label": "good"}
    chosen = {"best_by": "loss"}
    first = aim_of(over(recipe(), axis).recipe)
    by_loss = aim_of(over(recipe(training=chosen), axis).recipe)
    gated = aim_of(over(recipe(training=chosen, gate=gate), axis).recipe)

    assert (first.metric, first.lower_is_better) == ("accuracy", False)
    assert (by_loss.metric, by_loss.lower_is_better, by_loss.by_training) == ("loss", True, True)
    assert (gated.metric, gated.part.label, gated.by_training) == ("recall", "good", False)


def test_the_digest_of_a_sweep_is_of_what_decides_its_trials(recipe: Any) -> None:
    plain = over(recipe(), "lora.r=4,8").digest({}, "base")
    more = over(recipe(), "lora.r=4,8", trials=99, minutes=1).digest({}, "base")
    others = {
        over(recipe(), "lora.r=4,16").digest({}, "base"),
        over(recipe(), "lora.r=4,8", seed=1).digest({}, "base"),
        over(recipe(training={"epochs": 2}), "lora.r=4,8").digest({}, "base"),
        over(recipe(), "lora.r=4,8").digest({"train": {"x.jsonl": "new"}}, "base"),
        over(recipe(), "lora.r=4,8").digest({}, "other"),
    }
    assert plain == more
    assert len(others - {plain}) == 5
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", plain)
