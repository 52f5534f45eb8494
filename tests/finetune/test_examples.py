"""Records become examples, or say why not."""

from typing import Any

import pytest

from adapters.prompt import AnswerInput, TranslateInput
from finetune.config import Recipe, check_recipe
from finetune.examples import Chat, Example, Preference, examples_of, label_set
from finetune.sources import Reading, Record


def recipe_for(task: str, **data: Any) -> Recipe:
    languages = {"source_lang": "en", "target_lang": "fr"} if task == "translate" else {}
    return check_recipe(
        {"name": "a", "task": task, "data": {"train": "x.jsonl", **languages, **data}}
    )


def read(recipe: Recipe, *fields: dict[str, Any]) -> tuple[list[Example], list[str]]:
    reading = Reading([Record("f.jsonl", n, row) for n, row in enumerate(fields, 1)])
    found = list(examples_of(reading, recipe, label_set(recipe, reading)))
    return found, [str(item) for item in reading.broken]


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
        "f.jsonl:3: 'text' is not text",
        "f.jsonl:4: 'text' is missing (there: label)",
        "f.jsonl:5: the label 'maybe' is none of yes, no",
        "f.jsonl:6: is not UTF-8",
    ]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "no list of messages"),
        ([{"role": "user", "content": "hi"}], "no message of the assistant"),
        ([{"role": "tool", "content": "hi"}], "no role among"),
        ([{"role": "user", "content": None}], "no text as its content"),
        ([{"role": "assistant", "content": "hi"}], "nothing stands before"),
        ([{"role": "user", "content": "a", "weight": 2}], "weight other than"),
    ],
)
def test_a_chat_that_cannot_be_trained_on_says_why(messages: Any, reason: str) -> None:
    found, broken = read(recipe_for("generate"), {"messages": messages})
    assert not found
    assert reason in broken[0]


def test_a_chat_keeps_weights_and_asks_for_its_last_answer() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c", "name": "dropped"},
        {"role": "assistant", "content": "d"},
    ]
    found, broken = read(recipe_for("generate"), {"messages": messages})
    assert not broken
    given = found[0].input
    assert isinstance(given, Chat)
    assert given.last == 3
    assert given.messages[1]["weight"] == 0
    assert found[0].references == ("d",)


def preference(**changes: Any) -> dict[str, Any]:
    """A record in OpenAI's form."""
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "how cold is it?"},
    ]
    return {
        "input": {"messages": messages, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "It is cold."}],
        "non_preferred_output": [{"role": "assistant", "content": "No idea."}],
        **changes,
    }


def test_a_preference_is_a_chat_with_another_answer() -> None:
    found, broken = read(recipe_for("generate"), preference())
    assert not broken
    given = found[0].input
    assert isinstance(given, Preference)
    assert given.messages[-1] == {"role": "assistant", "content": "It is cold."}
    assert (given.rejected, found[0].references) == ("No idea.", ("It is cold.",))
    assert [m.get("weight") for m in given.messages] == [None, 0, None, None]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input": "hi"}, "'input' has no list of messages"),
        ({"input": {"messages": [{"role": "user", "content": ""}]}}, "has no text"),
        ({"input": {"messages": [{"role": "user", "content": "a"}], "tools": [1]}}, "tools"),
        ({"preferred_output": []}, "'preferred_output' is no list of one message"),
        (
            {"non_preferred_output": [{"role": "user", "content": "a"}]},
            "'non_preferred_output' is no list of one message of the assistant",
        ),
        (
            {"non_preferred_output": [{"role": "assistant", "content": None}]},
            "'non_preferred_output' has no text",
        ),
        (
            {"non_preferred_output": [{"role": "assistant", "content": "It is cold."}]},
            "are the same",
        ),
    ],
)
def test_a_preference_that_cannot_be_used_says_why(changes: dict[str, Any], reason: str) -> None:
    found, broken = read(recipe_for("generate"), preference(**changes))
    assert found == []
    assert reason in broken[0]


def test_preference_tuning_needs_preferences() -> None:
    recipe = check_recipe(
        {
            "name": "a", "task": "generate", "data": {"train": "x.jsonl"},
            "training": {"method": "dpo"},
        }
    )  # fmt: skip
    found, broken = read(recipe, {"prompt": "a", "completion": "b"})
    assert found == []
    assert "'input' is missing (there: prompt, completion)" in broken[0]
