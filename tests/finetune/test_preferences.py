"""Preferences are chats with another answer; what is wrong with a line is told."""

from typing import Any

import pytest

from finetune.config import Recipe, check_recipe
from finetune.examples import Example, examples_of
from finetune.preferences import Preference
from finetune.reading import Reading, Record


def read(recipe: Recipe, fields: dict[str, Any]) -> tuple[list[Example], list[str]]:
    reading = Reading()
    found = list(examples_of([Record("f.jsonl", 1, fields)], reading, recipe, []))
    return found, [str(item) for item in reading.broken]


def recipe_for(**training: Any) -> Recipe:
    raw = {"name": "a", "task": "generate", "data": {"train": "x.jsonl"}, "training": training}
    return check_recipe(raw)


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
    found, broken = read(recipe_for(), preference())
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
            {"preferred_output": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
            "'preferred_output' has tool_calls",
        ),
        (
            {"non_preferred_output": [{"role": "assistant", "content": "It is cold."}]},
            "are the same",
        ),
    ],
)
def test_a_preference_that_cannot_be_used_says_why(changes: dict[str, Any], reason: str) -> None:
    found, broken = read(recipe_for(), preference(**changes))
    assert found == []
    assert reason in broken[0]


def test_preference_tuning_needs_preferences() -> None:
    found, broken = read(recipe_for(method="dpo"), {"prompt": "a", "completion": "b"})
    assert found == []
    assert "'input' is missing (there: prompt, completion)" in broken[0]
