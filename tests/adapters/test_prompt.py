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


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As those of Qwen and Hermes have it."""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLING = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
    },
    {"role": "tool", "content": "4 degrees", "tool_call_id": "c"},
    {"role": "assistant", "content": "cold"},
]


@pytest.fixture(scope="module")
def tool_renderer() -> Renderer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    return Renderer(tokenizer)


def test_a_tool_call_is_learned_as_the_template_writes_it(tool_renderer: Renderer) -> None:
    ids, supervised = tool_renderer.conversation(CALLING, TOOLS)

    said = [token for token, flag in zip(ids, supervised, strict=True) if flag]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert said == tool_renderer.completion_ids(call) + tool_renderer.completion_ids("cold")
    for position in (1, 3):
        prompt = tool_renderer.chat_ids(CALLING[:position], TOOLS)
        assert ids[: len(prompt)] == prompt
    whole = tool_renderer.tokenizer.apply_chat_template(CALLING, tools=TOOLS, tokenize=False)
    assert tool_renderer.tokenizer.decode(ids) == whole.rstrip("\n")


@pytest.mark.parametrize(
    ("template", "messages", "tools", "reason"),
    [
        (TOOL_TEMPLATE.replace("if tools", "if false"), CALLING, TOOLS, "not show tools:"),
        (TOOL_TEMPLATE.replace("call.function.name", "''"), CALLING, TOOLS, "not show tool calls"),
        (
            TOOL_TEMPLATE.replace("{{ message.content or '' }}", "{{ message.content if "
            "message.role != 'tool' else '' }}"), CALLING, TOOLS, "not show tools' answers",
        ),
    ],
)  # fmt: skip
def test_a_template_that_passes_over_tools_is_refused(
    template: str, messages: list[dict[str, object]], tools: list[dict[str, object]], reason: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InvalidInput, match=reason):
        Renderer(tokenizer).conversation(messages, tools)
