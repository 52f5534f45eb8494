"""Conversations with weights and tools are read, or refused with the message that is wrong."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.renderers.chat_utils import parse_chat_messages

from finetune.chats import Chat, parse_chat
from finetune.reading import BadLine

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Weather in Oslo?"}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"}
SAID = {"role": "assistant", "content": "It is cold."}


def call(arguments: Any = '{"city": "Oslo"}', name: str = "weather") -> dict[str, Any]:
    made = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def parse(*messages: Any, **fields: Any) -> Chat:
    return parse_chat({"messages": list(messages), **fields}, "messages")


def test_weights_are_kept_and_the_last_weighted_answer_is_asked_for() -> None:
    first = {"role": "assistant", "content": "b", "weight": 1}
    second = {"role": "assistant", "content": "d", "weight": 0}
    chat = parse(USER, first, USER, second)
    assert [m.get("weight") for m in chat.messages] == [None, 1, None, 0]
    assert chat.last == 1
    assert parse(USER, first, USER, SAID).last == 3
    assert parse(USER, second).last == 1


def test_calls_and_answers_of_tools_are_kept_as_templates_take_them() -> None:
    chat = parse(USER, call(), ANSWER, SAID, tools=[TOOL])
    assert chat.tools == (TOOL,)
    assert chat.messages[1]["content"] == ""
    made = chat.messages[1]["tool_calls"][0]
    assert made["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert chat.messages[2] == ANSWER
    assert chat.asked["tools"] == [TOOL]
    assert (
        parse(USER, call({"city": "Oslo"}), tools=json.dumps([TOOL])).messages == chat.messages[:2]
    )


def test_templates_get_the_messages_that_the_engine_would_give_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": parts, "name": "me"},
        call(), {**ANSWER, "content": parts}, SAID,
    ]  # fmt: skip
    model = SimpleNamespace(
        multimodal_config=None, is_multimodal_model=False, enable_prompt_embeds=False
    )

    theirs, _, _ = parse_chat_messages(copy.deepcopy(messages), model, "string")

    assert [dict(m) for m in theirs] == list(parse(*messages, tools=[TOOL]).messages)


def test_columns_that_a_table_fills_with_nothing_are_as_if_they_were_not_there() -> None:
    empty = {"weight": None, "tool_calls": None, "name": None, "function_call": None}
    chat = parse({**USER, **empty}, {**SAID, **empty}, tools=None, functions=None)
    assert chat == parse(USER, SAID)


def test_a_text_in_parts_is_joined_as_servers_join_it() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse({"role": "user", "content": parts}, SAID).messages[0]["content"] == "a\nb"


def test_what_a_chat_is_asked_with_makes_it_another_input() -> None:
    other = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    chats = [
        parse(USER, SAID), parse(USER, SAID, tools=[TOOL]), parse(USER, SAID, tools=[other]),
        parse(USER, call(), ANSWER, SAID, tools=[TOOL]),
        parse(USER, call("{}"), ANSWER, SAID, tools=[TOOL]),
    ]  # fmt: skip
    assert len({json.dumps(chat.key_parts()) for chat in chats}) == len(chats)
    assert parse(USER, SAID).key_parts() == ["user", USER["content"]]


@pytest.mark.parametrize(
    ("messages", "fields", "reason"),
    [
        ("hello", {}, "'messages' is no list of messages"),
        ([], {}, "'messages' is no list of messages"),
        ([USER], {}, "no message of the assistant"),
        ([{"role": "function", "content": "hi"}], {}, "message 0 has no role among system"),
        (["hi"], {}, "message 0 has no role among"),
        ([{"role": "user", "content": None}], {}, "message 0 has no text as its content"),
        ([USER, {"role": "assistant", "content": " "}], {}, "message 1 has no text"),
        ([SAID], {}, "nothing stands before"),
        ([USER, {**SAID, "weight": 0.5}], {}, "message 1 has a weight other than 0 and 1"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "has a part that is not text"),
        ([USER, {**SAID, "function_call": {"name": "a"}}], {}, "write tool_calls"),
        ([USER, SAID], {"functions": []}, "write 'tools'"),
        ([USER, SAID], {"tools": [{"name": "a"}]}, "'tools' is no list of functions"),
        ([USER, SAID], {"tools": "[{"}, "'tools' is not JSON"),
        ([USER, call()], {}, "message 1 calls 'weather', which 'tools' does not describe"),
        ([USER, call(name="time")], {"tools": [TOOL]}, "calls 'time', which 'tools'"),
        ([USER, call("{")], {"tools": [TOOL]}, "message 1 has a tool call whose arguments are not"),
        ([USER, call("[]")], {"tools": [TOOL]}, "arguments are no JSON object"),
        ([USER, {**SAID, "tool_calls": [{"id": "x"}]}], {}, "without the name of a function"),
        ([USER, ANSWER, SAID], {"tools": [TOOL]}, "message 1 answers the call 'c1', which none"),
        ([{**USER, "tool_calls": [{}]}, SAID], {}, "message 0 has tool_calls, which are"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be_trained_on_says_why(
    messages: Any, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadLine) as caught:
        parse_chat({"messages": messages, **fields}, "messages")
    assert reason in str(caught.value)
