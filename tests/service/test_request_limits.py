"""How much one request may ask for."""

from contextlib import suppress
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.request_limits import check_limits
from service.settings import Settings
from tests.service.test_responses import Handler, create

FEW = Settings(max_choices=8, max_messages=4, max_tools=2)
TURN = {"role": "user", "content": "a"}


def part(kind: str, **more: Any) -> dict[str, Any]:
    return {"messages": [TURN, {"role": "user", "content": ["a", {"type": kind} | more]}]}


TOO_MUCH: list[tuple[dict[str, Any], str]] = [
    ({"n": 9}, "n"),
    ({"n": 3, "prompt": ["a", "b", "c"]}, "n"),
    ({"prompt": ["a"] * 9}, "prompt"),
    ({"prompt": [[1, 2]] * 9}, "prompt"),
    ({"messages": [TURN] * 5}, "messages"),
    ({"input": [TURN] * 5}, "input"),
    ({"tools": [{}] * 3}, "tools"),
    ({"stop": "x" * 257}, "stop.0"),
    ({"stop": ["a", "x" * 257]}, "stop.1"),
    ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
    ({"stop_token_ids": [1] * 65_537}, "stop_token_ids"),
    ({"allowed_token_ids": [1] * 65_537}, "allowed_token_ids"),
    ({"bad_words": ["a"] * 129}, "bad_words"),
    ({"bad_words": ["a", "x" * 257]}, "bad_words.1"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"repetition_detection": {"max_pattern_size": 257}}, "repetition_detection.max_pattern_size"),
    ({"repetition_detection": {"min_count": 2000}}, "repetition_detection.min_count"),
]
NOT_TEXT: list[tuple[dict[str, Any], str]] = [
    (part("image_url", image_url={"url": "http://169.254.169.254/"}), "messages.1.content.1"),
    (part("input_audio", input_audio={"data": "", "format": "wav"}), "messages.1.content.1"),
    (part("file", file={"file_id": "f"}), "messages.1.content.1"),
    (part("video_url"), "messages.1.content.1"),
    # by these keys vLLM takes a part for an image whatever its type says
    (part("text", text="a", uuid="1", image_url="http://a"), "messages.1.content.1.image_url"),
    ({"messages": [{"role": "user", "content": [{"image_url": "http://a"}]}]},
     "messages.0.content.0.image_url"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [["a"]]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
    ({"input": [{"type": "computer_call_output", "call_id": "a"}]}, "input.0"),
    ({"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]},
     "input.0.output.0"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), [*TOO_MUCH, *NOT_TEXT])
def test_what_is_too_much_or_no_text_is_named_by_its_place(
    body: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        check_limits(body, FEW)
    assert caught.value.param == param
    assert caught.value.hint


@pytest.mark.parametrize(
    "body",
    [
        {}, {"n": 8}, {"n": 4, "prompt": ["a", "b"]}, {"n": None, "prompt": None},
        {"prompt": [1] * 4000}, {"prompt": []}, {"prompt": "a", "n": "many"},
        {"messages": [TURN] * 4, "stop": ["x" * 256] * 4, "metadata": {"k": "v"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}], "audio": None}]},
        {"messages": "wrong", "input": 5, "tools": "x", "logit_bias": [], "metadata": None},
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]}]},
        {"input": [{"type": "function_call_output", "output": "21"}, TURN]},
    ],
)  # fmt: skip
def test_what_is_within_the_limits_or_vllms_to_name_passes(body: dict[str, Any]) -> None:
    check_limits(body, FEW)


FIELDS = ["messages", "input", "prompt", "n", "stop", "tools", "metadata", "bad_words",
          "logit_bias", "repetition_detection", "content", "type", "audio", "summary"]  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6)
    ),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_no_body_makes_the_checks_fail(body: dict[str, Any]) -> None:
    with suppress(BadRequest):
        check_limits(body, FEW)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]},
         "unsupported_content"),
        ({"metadata": {"k": "v" * 513}}, "invalid_value"),
        ({"tools": [{"type": "function", "name": "f"}] * 129}, "invalid_value"),
    ],
)  # fmt: skip
def test_the_route_refuses_before_vllm_reads(more: dict[str, Any], code: str) -> None:
    handler = Handler()
    with pytest.raises(openai.BadRequestError) as caught:
        create(handler, extra_body=more)
    assert caught.value.code == code
    assert handler.asked is None
