"""What OpenAI's client may ask of chat and completions, one option after the other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from adapters.registry import Registry
from tests.made import add_tiny_base
from tests.serving import Reached, Running, start, stop

CHAT: list[Any] = [{"role": "user", "content": "save the file"}]
LONG = {"ignore_eos": True}
UNIT = {
    "type": "object", "properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"],
    "additionalProperties": False,
}  # fmt: skip
TOOL: Any = {
    "type": "function", "function": {"name": "warm", "parameters": UNIT, "strict": True}
}  # fmt: skip
TIGHT = '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}'


def chat(server: Reached, **body: Any) -> Any:
    given = {"model": "one", "messages": CHAT, "max_tokens": 8, "temperature": 0}
    return server.openai().chat.completions.create(**(given | body))


def completion(server: Reached, **body: Any) -> Any:
    given = {"model": "one", "prompt": "save the", "max_tokens": 8, "temperature": 0}
    return server.openai().completions.create(**(given | body))


class TestStreams:
    def test_usage_comes_last_and_alone_when_it_is_asked_for(self, server: Running) -> None:
        for stream in (
            chat(server, stream=True, stream_options={"include_usage": True}),
            completion(server, stream=True, stream_options={"include_usage": True}),
        ):
            *chunks, last = list(stream)
            assert last.choices == []
            assert last.usage.total_tokens == last.usage.prompt_tokens + 8
            assert all(chunk.usage is None for chunk in chunks)

    def test_no_usage_comes_unasked(self, server: Running) -> None:
        for stream in (chat(server, stream=True), completion(server, stream=True)):
            assert all(chunk.usage is None for chunk in stream)

    def test_stream_options_without_a_stream_are_refused(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, stream_options={"include_usage": True})
        assert caught.value.param == "stream_options"

    def test_the_last_chunk_says_why_it_ended(self, server: Running) -> None:
        chunks = list(chat(server, stream=True, extra_body=LONG))
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[-1] == "length"
        assert set(reasons[:-1]) == {None}
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len({chunk.id for chunk in chunks}) == 1


class TestChoices:
    def test_n_answers_are_told_apart_and_counted_together(self, server: Running) -> None:
        answer = chat(server, n=3, temperature=1.0, seed=1, extra_body=LONG)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 24

    def test_n_answers_stream_side_by_side(self, server: Running) -> None:
        chunks = list(chat(server, n=2, temperature=1.0, stream=True, extra_body=LONG))
        assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}

    def test_a_list_of_prompts_gives_a_choice_each(self, server: Running) -> None:
        answer = completion(server, prompt=["save the", "the file"], n=2, temperature=1.0)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]

    def test_no_answer_is_refused(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError):
            chat(server, n=0)


class TestSampling:
    def test_a_seed_reproduces_and_another_differs(self, server: Running) -> None:
        def said(seed: int) -> str:
            answer = chat(server, temperature=1.5, seed=seed, max_tokens=16, extra_body=LONG)
            return str(answer.choices[0].message.content)

        assert said(1) == said(1)
        assert len({said(seed) for seed in range(4)}) > 1

    @pytest.mark.parametrize("several", [False, True])
    def test_a_stop_text_ends_the_answer_and_is_left_out(
        self, server: Running, several: bool
    ) -> None:
        whole = chat(server, max_tokens=24, extra_body=LONG).choices[0].message.content
        stop_at = next(c for c in whole[len(whole) // 2 :] if c.isascii() and c.isprintable())
        given: Any = ["never said by anybody", stop_at] if several else stop_at
        choice = chat(server, max_tokens=24, stop=given, extra_body=LONG).choices[0]
        assert choice.message.content == whole[: whole.index(stop_at)]
        assert choice.finish_reason == "stop"

    def test_max_completion_tokens_is_max_tokens(self, server: Running) -> None:
        answer = chat(server, max_tokens=openai.omit, max_completion_tokens=5, extra_body=LONG)
        assert answer.usage.completion_tokens == 5
        assert answer.choices[0].finish_reason == "length"


class TestLogprobs:
    def test_of_chat(self, server: Running) -> None:
        content = chat(server, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content)
        assert [token.token for token in content] == [t.top_logprobs[0].token for t in content]

    def test_of_chat_without_the_top(self, server: Running) -> None:
        content = chat(server, logprobs=True).choices[0].logprobs.content
        assert content
        assert chat(server).choices[0].logprobs is None

    def test_of_completions(self, server: Running) -> None:
        logprobs = completion(server, logprobs=2, extra_body=LONG).choices[0].logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 8
        assert all(logprobs.top_logprobs)  # by their text, which two tokens may share

    def test_the_top_without_logprobs_is_refused(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, top_logprobs=2)
        assert caught.value.param == "top_logprobs"

    def test_echo_of_chat_is_refused(self, server: Running) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, logprobs=True, extra_body={"echo": True})
        assert (caught.value.param, caught.value.code) == ("echo", "unsupported_field")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that reads tool calls; its tiny base alone."""
    home: Path = tmp_path_factory.mktemp("tools")
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    process, url = start(
        home, "--", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", TIGHT,
        MODISTE_WORKER_JOBS="0",
    )  # fmt: skip
    yield Running(registry, base, url, home / "serve.log", process)
    stop(process)


def test_a_server_that_is_told_so_has_no_worker(tools: Running) -> None:
    children = psutil.Process(tools.process.pid).children(recursive=True)
    assert not [child for child in children if "service.jobs.worker" in child.cmdline()]


class TestStructure:
    def test_json_of_a_schema(self, tools: Reached) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "unit", "schema": UNIT}}
        answer = chat(tools, model="tiny", response_format=form, max_tokens=60)
        assert json.loads(answer.choices[0].message.content)["unit"] in ("c", "f")

    def test_json_of_a_schema_in_a_response(self, tools: Reached) -> None:
        form = {"format": {"type": "json_schema", "name": "unit", "schema": UNIT}}
        answer = tools.openai().responses.create(
            model="tiny", input="warm?", text=form, max_output_tokens=60
        )  # type: ignore[call-overload]
        assert json.loads(answer.output_text)["unit"] in ("c", "f")

    def test_a_schema_that_is_missing_is_refused(self, tools: Reached) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(tools, model="tiny", response_format={"type": "json_schema"})
        assert str(caught.value.param).startswith("response_format")


class TestTools:
    def test_a_named_tool_is_called(self, tools: Reached) -> None:
        named = {"type": "function", "function": {"name": "warm"}}
        answer = chat(tools, model="tiny", tools=[TOOL], tool_choice=named, max_tokens=400)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "warm"
        assert json.loads(call.function.arguments)["unit"] in ("c", "f")

    def test_no_tool_is_called_where_none_may_be(self, tools: Reached) -> None:
        answer = chat(tools, model="tiny", tools=[TOOL], tool_choice="none")
        assert not answer.choices[0].message.tool_calls
        assert isinstance(answer.choices[0].message.content, str)

    def test_a_call_in_a_response(self, tools: Reached) -> None:
        tool = {"type": "function", **TOOL["function"]}
        answer = tools.openai().responses.create(
            model="tiny", input="warm?", tools=[tool], max_output_tokens=400,
            tool_choice={"type": "function", "name": "warm"},
        )  # type: ignore[call-overload]  # fmt: skip
        calls = [item for item in answer.output if item.type == "function_call"]
        assert [call.name for call in calls] == ["warm"]
        assert json.loads(calls[0].arguments)["unit"] in ("c", "f")

    def test_tools_without_a_parser_are_refused(self, server: Running) -> None:
        for choice in ("auto", "required"):
            with pytest.raises(openai.BadRequestError):
                chat(server, tools=[TOOL], tool_choice=choice)

    def test_results_of_tools_are_read(self, tools: Reached) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "warm", "arguments": "{}"}}
        turns = [
            *CHAT, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "21"},
        ]  # fmt: skip
        answer = chat(tools, model="tiny", messages=turns, tools=[TOOL], tool_choice="none")
        assert isinstance(answer.choices[0].message.content, str)
