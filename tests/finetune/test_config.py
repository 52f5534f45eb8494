"""Recipes: read, overridden, and refused with every mistake at once."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import InvalidInput
from finetune.config import apply_overrides, check_recipe, packaged_recipes, parse_yaml, read_recipe
from finetune.data_config import Data
from finetune.mistakes import RecipeError

GOOD: dict[str, Any] = {
    "name": "a",
    "task": "translate",
    "data": {"train": "x.jsonl", "source_lang": "en", "target_lang": "fr"},
}


def test_all_mistakes_are_reported_at_once_with_key_value_and_remedy() -> None:
    raw = {
        "name": "Bad Name",
        "task": "translate",
        "data": {"train": "x.jsonl", "source_lang": "en", "format": "qa", "columns": {"txt": "a"}},
        "lora": {"r": 0, "target_modules": ["q_proj", "lm_head"]},
        "training": {"learning_rat": 1, "epochs": "many", "schedule": "linear"},
        "prompt": {"user": "{words}"},
    }

    with pytest.raises(RecipeError) as caught:
        check_recipe(raw)

    found = {mistake.key: mistake for mistake in caught.value.mistakes}
    assert set(found) == {
        "name", "data.target_lang", "data.format", "data.columns.txt", "lora.r",
        "lora.target_modules.1", "training.learning_rat", "training.epochs",
        "training.schedule", "prompt",
    }  # fmt: skip
    assert found["training.epochs"].value == "many"
    assert found["training.learning_rat"].remedy == "did you mean learning_rate?"
    assert "words" in found["prompt"].problem
    assert all(key in caught.value.message for key in found)


def test_mistakes_in_a_gate_are_told_with_key_and_remedy() -> None:
    raw = {
        **GOOD,
        "evaluation": {"valid_json": True, "compare_live": False},
        "gate": {
            "metric": "accuracy", "label": "good", "confidense": 0.9,
            "keep": [
                {"metric": "chrf", "margn": 1}, {"metric": "bleu", "margin": 0, "column": "x"},
            ],
        },
    }  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        check_recipe(raw)

    found = {mistake.key: mistake for mistake in caught.value.mistakes}
    assert set(found) == {
        "evaluation.valid_json", "gate.metric", "gate.label", "gate.over_live", "gate.confidense",
        "gate.keep.0.margin", "gate.keep.0.margn", "gate.keep.1",
    }  # fmt: skip
    assert found["gate.metric"].remedy == "measured: chrf, chrf++, bleu, placeholders"
    assert found["gate.confidense"].remedy == "did you mean confidence?"
    assert found["gate.keep.0.margn"].remedy == "did you mean margin?"
    assert "go together" in found["gate.keep.1"].problem


@pytest.mark.parametrize(
    ("gate", "key"),
    [
        ({"metric": "f1"}, "gate.metric"),
        ({"metric": "recall", "label": "c"}, "gate.label"),
        ({"metric": "accuracy", "keep": [{"metric": "f2", "margin": 0}]}, "gate.keep.0.metric"),
        ({"metric": "f1", "label": "a", "keep": [{"metric": "ece", "margin": 0}]}, None),
        ({"metric": "accuracy", "label": "a"}, None),
    ],
)
def test_a_classifiers_gate_names_labels_for_what_is_measured_of_a_label(
    gate: dict[str, Any], key: str | None
) -> None:
    raw = {
        "name": "a", "task": "classify", "data": {"train": "x.jsonl", "labels": ["a", "b"]},
        "gate": gate,
    }  # fmt: skip
    if key is None:
        assert check_recipe(raw).gate is not None
        return
    with pytest.raises(RecipeError) as caught:
        check_recipe(raw)
    assert [mistake.key for mistake in caught.value.mistakes] == [key]


def test_a_check_can_be_gated_only_where_the_recipe_names_it() -> None:
    raw: dict[str, Any] = {"name": "a", "task": "generate", "data": {"train": "x.jsonl"}}
    gate = {"gate": {"metric": "json_valid"}}
    assert check_recipe({**raw, **gate, "evaluation": {"valid_json": True}}).gate is not None
    with pytest.raises(RecipeError, match=r"gate\.metric.*evaluation\.valid_json"):
        check_recipe({**raw, **gate})
    with pytest.raises(RecipeError, match="no regular expression"):
        check_recipe({**raw, "evaluation": {"pattern": "("}})


def test_modules_to_save_is_refused_with_its_reason() -> None:
    with pytest.raises(RecipeError, match=r"modules_to_save.*linear modules only"):
        check_recipe({**GOOD, "lora": {"modules_to_save": ["lm_head"]}})


def test_a_missing_key_says_how_to_give_it() -> None:
    with pytest.raises(RecipeError, match=r"data\.train.*--set data\.train="):
        check_recipe({**GOOD, "data": {"source_lang": "en", "target_lang": "fr"}})


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_needs_only_its_data(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(name)
    assert [mistake.key for mistake in caught.value.mistakes] == ["data.train"]

    assert read_recipe(name, ["data.train=x.jsonl"]).data.train == ["x.jsonl"]


def test_there_is_a_packaged_recipe_for_each_task_and_for_code() -> None:
    assert packaged_recipes() == [
        "answer",
        "classify",
        "classify-many",
        "code",
        "generate",
        "translate",
    ]


def test_overrides_replace_nested_values_and_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: a\ntask: translate\ndata: {train: x.jsonl, source_lang: en, target_lang: de}\n"
    )

    recipe = read_recipe(
        str(path),
        ["training.learning_rate=2e-4", "data.train=[a.csv, b.csv]", "data.target_lang=no"],
    )

    assert recipe.training.learning_rate == 2e-4
    assert recipe.data.train == ["a.csv", "b.csv"]
    assert recipe.data.target_lang in ("no", "nb")  # Norwegian, not false


def test_overrides_that_cannot_be_applied_are_mistakes_beside_the_others() -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe("translate", ["nonsense", "name.x=1", "training.epochs=0"])

    keys = [mistake.key for mistake in caught.value.mistakes]
    assert keys == ["--set", "name.x", "data.train", "training.epochs"]


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(InvalidInput, match="'name' is given twice"):
        read_recipe(str(path))


def test_zero_is_a_value_and_not_a_missing_one() -> None:
    recipe = check_recipe({**GOOD, "training": {"warmup_ratio": 0, "seed": 0}})
    assert recipe.training.warmup_ratio == 0.0


def test_the_digest_changes_with_any_key() -> None:
    one = check_recipe(GOOD)
    other = check_recipe({**GOOD, "training": {"seed": 1}})
    assert one.digest != other.digest
    assert one.digest == check_recipe(parse_yaml(one.to_yaml())).digest
    gated = check_recipe({**GOOD, "gate": {"metric": "chrf", "language": "en"}})
    assert gated.digest == check_recipe(parse_yaml(gated.to_yaml())).digest != one.digest


def test_a_recipe_changes_parts_of_the_prompt_only() -> None:
    recipe = check_recipe({**GOOD, "prompt": {"system": None}})
    assert recipe.template.system is None
    assert recipe.template.user == "{text}"


@pytest.mark.parametrize(
    ("task", "format_", "training", "key"),
    [
        ("translate", "auto", {"method": "dpo"}, "training.method"),
        ("generate", "chat", {"method": "dpo"}, "training.method"),
        ("generate", "auto", {"beta": 0.5}, "training.beta"),
        ("generate", "auto", {"loraplus_lr_ratio": 0.5}, "training.loraplus_lr_ratio"),
        ("generate", "auto", {"report_to": ["wandb"]}, "training.report_to.0"),
    ],
)
def test_settings_of_training_that_mean_nothing_are_mistakes(
    task: str, format_: str, training: dict[str, Any], key: str
) -> None:
    languages = {"source_lang": "en", "target_lang": "fr"} if task == "translate" else {}
    data = {"train": "x.jsonl", "format": format_, **languages}
    with pytest.raises(RecipeError) as caught:
        check_recipe({"name": "a", "task": task, "data": data, "training": training})
    assert [mistake.key for mistake in caught.value.mistakes] == [key]


def test_preference_tuning_is_a_method_of_generate() -> None:
    raw = {"name": "a", "task": "generate", "data": {"train": "x.jsonl"}}
    recipe = check_recipe({**raw, "training": {"method": "dpo", "report_to": "tensorboard"}})
    assert recipe.training.beta == 0.1
    assert recipe.training.report_to == ["tensorboard"]
    assert check_recipe(parse_yaml(recipe.to_yaml())) == recipe


def test_every_key_of_the_data_is_documented() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    for name, field in Data.model_fields.items():
        assert field.description
        assert re.search(rf"\| `{name}` \|.*{re.escape(field.description)}", reference), name


@pytest.mark.parametrize(
    ("data", "key", "remedy"),
    [
        ({"encoding": "utf-99"}, "data.encoding", "is no encoding"),
        ({"split_by": "document", "test": "y.jsonl"}, "data.split_by", "leave out data.test"),
        ({"split_by": "document", "holdout_fraction": 0}, "data.split_by", "raise data.holdout"),
        ({"split_by": ""}, "data.split_by", "what keeps examples on one side"),
        (
            {"validation": "y.jsonl", "validation_fraction": 0.1},
            "data.validation_fraction",
            "leave",
        ),
    ],
)
def test_contradictions_of_the_data_are_told_with_key_and_remedy(
    data: dict[str, Any], key: str, remedy: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe({**GOOD, "data": {**GOOD["data"], **data}})
    assert [m.key for m in caught.value.mistakes] == [key]
    assert remedy in str(caught.value.mistakes[0])


def test_an_override_may_be_json_with_any_character() -> None:
    raw: dict[str, Any] = {}
    values = ["Be kind. 🙂", "line\u2028end", 'quote " and \\', "ü"]
    for value in values:
        assert apply_overrides(raw, [f"prompt.system={json.dumps(value)}"]) == []
        assert raw["prompt"]["system"] == value
    assert apply_overrides(raw, [f"data.labels={json.dumps(values)}", "lora.r=4"]) == []
    assert (raw["data"]["labels"], raw["lora"]["r"]) == (values, 4)
