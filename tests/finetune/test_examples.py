"""Records become examples, or say why not."""

from typing import Any

from adapters.prompt import AnswerInput, TranslateInput
from finetune.config import Recipe, check_recipe
from finetune.examples import Example, examples_of, label_set
from finetune.reading import Reading, Record


def recipe_for(task: str, **data: Any) -> Recipe:
    languages = {"source_lang": "en", "target_lang": "fr"} if task == "translate" else {}
    return check_recipe(
        {"name": "a", "task": task, "data": {"train": "x.jsonl", **languages, **data}}
    )


def read(recipe: Recipe, *fields: dict[str, Any]) -> tuple[list[Example], list[str]]:
    found, reading = read_all(recipe, *fields)
    return found, [str(item) for item in reading.broken]


def read_all(recipe: Recipe, *fields: dict[str, Any]) -> tuple[list[Example], Reading]:
    reading = Reading()
    records = [Record("f.jsonl", n, row) for n, row in enumerate(fields, 1)]
    labels = label_set(recipe, records)
    return list(examples_of(records, reading, recipe, labels, grouped=True)), reading


def test_language_columns_win_over_a_column_called_source() -> None:
    found, broken = read(recipe_for("translate"), {"en": "Save", "fr": "Garder", "source": "app"})
    assert not broken
    assert found[0].input == TranslateInput("Save", "en", "fr")
    assert found[0].references == ("Garder",)


def test_mapped_and_nested_translations_are_read() -> None:
    mapped = recipe_for("translate", columns={"source": "a", "target": "b"})
    assert read(mapped, {"a": "x", "b": "y"})[0][0].references == ("y",)
    nested, _ = read(recipe_for("translate"), {"translation": {"en": "x", "fr": "z"}})
    assert nested[0].references == ("z",)


def test_answers_are_read_as_squad_writes_them() -> None:
    context = "Paris is big."
    found, broken = read(
        recipe_for("answer"),
        {"question": "q", "context": context, "answers": {"text": ["a", "b", "a"]}},
        {"question": "q", "context": context, "answers": {"text": []}},
        {"question": "q", "answers": [{"text": "c"}]},
        {"question": "q", "context": "", "answer": "d"},
    )
    assert not broken
    assert [e.references for e in found] == [("a", "b"), ("unanswerable",), ("c",), ("d",)]
    assert found[3].input == AnswerInput("q", None)


def test_what_makes_no_example_is_reported_with_file_line_and_reason() -> None:
    recipe = recipe_for("classify", labels=["yes", "no"])
    found, broken = read(
        recipe,
        {"text": "ok", "label": " yes "},
        {"text": " ", "label": "yes"},
        {"text": 3, "label": "yes"},
        {"label": "yes"},
        {"text": "a", "label": "maybe"},
        {"text": "half \ud800 pair", "label": "no"},
    )
    assert [e.references for e in found] == [("yes",)]
    assert broken == [
        "f.jsonl:2: 'text' is empty",
        "f.jsonl:3: 'text' is not text but 3",
        "f.jsonl:4: 'text' is missing (there: label; data.columns.text names another column)",
        "f.jsonl:5: the label 'maybe' is none of yes, no",
        "f.jsonl:6: 'text' has half of a surrogate pair, \\ud800",
    ]


def test_a_language_is_found_under_a_longer_tag_but_not_under_another_region() -> None:
    recipe = recipe_for("translate", target_lang="fr-CA")
    found, reading = read_all(
        recipe,
        {"translation": {"en-US": "a", "fr_ca": "b"}},
        {"translation": {"EN": "c", "fr-FR": "d", "fr-CA": "e"}},
        {"translation": {"en": "f", "fr-FR": "g"}},
        {"translation": {"en": "", "fr-CA": "h"}},
        {"en-GB": "i", "fr-CA": "j"},
    )
    assert [(e.input.text, e.references) for e in found] == [  # type: ignore[union-attr]
        ("a", ("b",)), ("c", ("e",)), ("i", ("j",)),
    ]  # fmt: skip
    assert not reading.broken
    assert reading.skipped == {"translations without fr-CA": 1, "translations without en": 1}


def test_squads_mark_of_the_unanswerable_must_agree_with_its_answers() -> None:
    def question(**more: Any) -> dict[str, Any]:
        return {"question": "q", "context": "c", **more}

    found, broken = read(
        recipe_for("answer"),
        question(is_impossible=True, answers=[]),
        question(is_impossible="True", answer=""),
        question(is_impossible="false", answer="a"),
        question(is_impossible=False, answers=[{"text": "b"}]),
        question(is_impossible=True, answers=[{"text": "c"}]),
        question(is_impossible=False, answers=[]),
        question(is_impossible="maybe", answer="a"),
    )
    assert [e.references[0] for e in found] == ["unanswerable", "unanswerable", "a", "b"]
    assert broken == [
        "f.jsonl:5: has answers, yet 'is_impossible' is true",
        "f.jsonl:6: has no answers, yet 'is_impossible' is false",
        "f.jsonl:7: 'is_impossible' is neither true nor false but 'maybe'",
    ]


def test_examples_of_one_group_have_one_side_and_a_missing_group_is_told() -> None:
    recipe = recipe_for("classify", split_by="document", labels=["x", "y"])
    rows = [
        {"text": "a", "label": "x", "document": "One"},
        {"text": "b", "label": "x", "document": " one "},
        {"text": "c", "label": "y", "document": 7},
        {"text": "d", "label": "y"},
        {"text": "e", "label": "y", "document": ["One"]},
    ]
    found, broken = read(recipe, *rows)
    one, other, third = found
    assert one.side == other.side != third.side
    assert one.key != other.key
    assert [item.partition(" by which")[0] for item in broken] == [
        "f.jsonl:4: 'document',", "f.jsonl:5: 'document',",
    ]  # fmt: skip
    assert "there: text, label" in broken[0]


def test_examples_can_be_kept_together_by_their_files() -> None:
    recipe = recipe_for("generate", split_by="file")
    row = {"prompt": "a", "completion": "b"}
    records = [
        Record(path, 1, {**row, "prompt": path}) for path in ("x/a.csv", "y/a.csv", "x/b.csv")
    ]
    one, other, third = examples_of(records, Reading(), recipe, [], grouped=True)
    assert one.side == other.side != third.side
