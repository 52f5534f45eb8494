"""Prompts: one renderer, exact ids, harmless user text."""

import pytest
from pydantic import ValidationError

from adapters.errors import InvalidInput
from adapters.prompt import (
    AnswerInput,
    ClassifyInput,
    GenerateInput,
    PromptTemplate,
    Renderer,
    TranslateInput,
    default_prompt,
)
from tests.tiny import make_tokenizer

TURNS = [
    {"role": "user", "content": "save the file"},
    {"role": "assistant", "content": "enregistrer"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "encore"},
]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer())


def test_a_conversation_begins_with_the_prompt_that_serving_sees(renderer: Renderer) -> None:
    ids, _ = renderer.conversation(TURNS)
    for position in (1, 3):
        prompt = renderer.chat_ids(TURNS[:position])
        assert ids[: len(prompt)] == prompt


def test_exactly_the_assistants_words_and_ends_are_supervised(renderer: Renderer) -> None:
    ids, supervised = renderer.conversation(TURNS)

    said = [token for token, flag in zip(ids, supervised, strict=True) if flag]
    assert said == renderer.completion_ids("enregistrer") + renderer.completion_ids("encore")


def test_a_turn_of_weight_zero_is_not_supervised(renderer: Renderer) -> None:
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]

    ids, supervised = renderer.conversation(turns)

    said = [token for token, flag in zip(ids, supervised, strict=True) if flag]
    assert said == renderer.completion_ids("encore")


def test_a_conversation_without_an_answer_is_refused(renderer: Renderer) -> None:
    with pytest.raises(InvalidInput):
        renderer.conversation(TURNS[:1])


def test_completions_end_with_the_end_of_turn(renderer: Renderer) -> None:
    assert renderer.completion_ids("x")[-1] == renderer.end_id
    assert renderer.end_text == "<|im_end|>"


@pytest.mark.parametrize("text", ["{text}", "{0.__class__}", "{{}}", "%(x)s {", "}"])
def test_braces_in_user_text_are_left_alone(text: str) -> None:
    messages = default_prompt("translate").messages(TranslateInput(text, "en", "fr"))

    assert messages[-1]["content"] == text
    assert "English to French" in messages[0]["content"]


def test_inputs_reach_their_fields() -> None:
    labels = default_prompt("classify").messages(ClassifyInput("t", ("a", "b")))
    answer = default_prompt("answer").messages(AnswerInput("why?", "because"))
    bare = default_prompt("answer").messages(AnswerInput("why?"))

    assert "a, b" in labels[0]["content"]
    assert "because" in answer[-1]["content"]
    assert bare[-1]["content"] == "why?"


@pytest.mark.parametrize("user", ["{label}", "{text!r}", "{text:>9}", "{text.x}", "{", "{}"])
def test_templates_with_unknown_or_clever_fields_are_refused(user: str) -> None:
    with pytest.raises(ValidationError):
        PromptTemplate(task="translate", user=user)


def test_an_input_of_another_task_is_refused() -> None:
    with pytest.raises(InvalidInput):
        default_prompt("translate").messages(GenerateInput("x"))
