"""Plain chats as vLLM streams them, and as they are shortened: the same bytes, in fewer pieces."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.outputs import CompletionOutput, RequestOutput

from service.streaming import shorten

TEXTS = ("Hé", ' "quoted" \\ \n', "", "\x00\u2028🙂", "data: {", "}")
TOKENS = ((5, 6), (7,), (8,), (9, 10, 11), (12,), (13,))
WITH_USAGE = {"stream_options": {"include_usage": True}}


def outputs(texts: Sequence[str] = TEXTS, *, ends: str | None = "length") -> list[RequestOutput]:
    return [
        RequestOutput(
            request_id="r", prompt="a", prompt_token_ids=[1, 2, 3], prompt_logprobs=None,
            outputs=[
                CompletionOutput(
                    index=0, text=text, token_ids=list(TOKENS[number]), cumulative_logprob=None,
                    logprobs=None,
                    finish_reason=ends if number == len(texts) - 1 else None,
                )
            ],
            finished=number == len(texts) - 1 and ends is not None, num_cached_tokens=2,
        )
        for number, text in enumerate(texts)
    ]  # fmt: skip


def handler(**more: Any) -> Any:
    """vLLM's own, as far as its stream of events needs it."""
    made = OpenAIServingChat.__new__(OpenAIServingChat)
    given = {
        "parser_cls": None, "enable_force_include_usage": False, "enable_log_outputs": False,
        "_include_reasoning_tokens_details": False, "system_fingerprint": "f", "response_role": "a",
        "request_logger": None, "enable_prompt_tokens_details": True,
        "enable_per_request_metrics": False,
    } | more  # fmt: skip
    vars(made).update(given)
    return made


class Engine:
    """Gives outputs, then fails or not."""

    def __init__(self, told: Sequence[RequestOutput], error: Exception | None = None) -> None:
        self.told, self.error, self.closed, self.given = told, error, False, 0

    async def generate(self) -> AsyncGenerator[RequestOutput, None]:
        try:
            for output in self.told:
                self.given += 1
                yield copy.deepcopy(output)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def events(made: Any, engine: Engine, **fields: Any) -> list[str]:
    request = ChatCompletionRequest(
        model="m", messages=[{"role": "user", "content": "a"}], stream=True, **fields
    )

    async def read() -> list[str]:
        stream = made.chat_completion_stream_generator(
            request, engine.generate(), "id", "m@1", [], None, SimpleNamespace(),
            chat_template_kwargs=None, mm_token_counts=None,
        )  # fmt: skip
        return [event async for event in stream]

    return asyncio.run(read())


@pytest.fixture(autouse=True)
def same_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events tell when they were made."""
    monkeypatch.setattr(
        "vllm.entrypoints.openai.chat_completion.serving.time",
        SimpleNamespace(time=lambda: 1_700_000_000),
    )


def both(told: Sequence[RequestOutput], error: Exception | None = None, **fields: Any) -> Any:
    short = handler()
    shorten(short)
    return (
        events(handler(), Engine(told, error), **fields),
        events(short, Engine(told, error), **fields),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {}, WITH_USAGE, {"return_prompt_text": True} | WITH_USAGE, {"stop": ["x"]},
        # what is left to vLLM
        {"n": 2}, {"return_token_ids": True}, {"echo": True, "add_generation_prompt": False},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "told",
    [outputs(), outputs(TEXTS[:1]), outputs(("", "", "a", "b")), outputs(TEXTS[:3], ends="stop"),
     outputs(("", "")), []],
    ids=["several", "one", "late", "stop", "no text", "nothing"],
)  # fmt: skip
def test_bytes_are_vllms(told: list[RequestOutput], fields: dict[str, Any]) -> None:
    vllms, ours = both(told, **fields)
    assert "".join(ours) == "".join(vllms)


def test_what_comes_at_once_goes_out_at_once() -> None:
    vllms, ours = both(outputs(), **WITH_USAGE)
    assert len(vllms) == len(TEXTS) + 3  # role, usage, end
    assert len(ours) == len(TEXTS)


def test_a_failure_in_between_is_told_by_itself() -> None:
    vllms, ours = both(outputs(ends=None), ValueError("broke"))
    assert "".join(ours) == "".join(vllms)
    assert [event for event in ours if event.startswith('data: {"error":')] == vllms[-2:-1]


def test_a_caller_who_goes_away_ends_the_engines_work() -> None:
    engine, short = Engine(outputs()), handler()
    shorten(short)

    async def read() -> None:
        request = ChatCompletionRequest(model="m", messages=[], stream=True)
        stream = short.chat_completion_stream_generator(
            request, engine.generate(), "id", "m@1", [], None, SimpleNamespace()
        )
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        assert engine.closed

    asyncio.run(read())
    assert engine.given == 2


@pytest.mark.parametrize("field", ["enable_force_include_usage", "enable_log_outputs"])
def test_a_handler_that_tells_more_is_left_alone(field: str) -> None:
    made = handler(**{field: True})
    shorten(made)
    engine = Engine(outputs())
    told = events(made, engine)
    assert sum('"content"' in event for event in told) == len(TEXTS) + 1
    assert "".join(told) == "".join(events(handler(**{field: True}), Engine(outputs())))
