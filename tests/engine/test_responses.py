"""POST /v1/responses through the official client and the real engine."""

import time
from typing import Any

import openai
import pytest

from tests.serving import Running

LONG = {"ignore_eos": True}


def create(server: Running, **body: Any) -> Any:
    given = {"model": "one", "input": "save the file", "max_output_tokens": 16, "temperature": 0}
    return server.openai().responses.create(**(given | body))


def test_an_answer_has_the_public_name_its_receipt_and_no_state(server: Running) -> None:
    raw = server.openai().responses.with_raw_response.create(
        model="one", input="save the file", max_output_tokens=16, extra_body=LONG
    )
    answer = raw.parse()
    version = server.registry.find("one@1")
    assert answer.model == "one@1"
    assert answer.usage.output_tokens == 16
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert raw.headers["x-modiste-receipt"] == (
        f"version=one@1; digest={version.digest}; proof=proved"
    )
    assert raw.http_response.json()["store"] is False


def test_it_says_what_chat_says(server: Running) -> None:
    chat = server.openai().chat.completions.create(
        model="one", max_tokens=16, temperature=0,
        messages=[
            {"role": "system", "content": "be short"}, {"role": "user", "content": "save the file"}
        ],
    )  # fmt: skip
    answer = create(server, instructions="be short")
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_earlier_turns_are_sent_again(server: Running) -> None:
    turns = [
        {"role": "user", "content": "save the file"},
        {"role": "assistant", "content": "saved"},
        {"role": "user", "content": "and the folder"},
    ]
    assert create(server, input=turns).usage.input_tokens > create(server).usage.input_tokens
    first = create(server)
    again = [turns[0], *(item.model_dump() for item in first.output), turns[2]]
    assert create(server, input=again).object == "response"


def test_adapters_and_the_base_answer_differently(server: Running) -> None:
    texts = {create(server, model=name).output_text for name in ("tiny", "one", "two@1")}
    assert len(texts) == 3


def test_a_stream_joins_to_the_unstreamed_answer(server: Running) -> None:
    whole = create(server)
    events = list(create(server, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 1
    final = events[-1].response
    assert (final.model, final.output_text) == ("one@1", whole.output_text)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_clients_own_reader_of_streams_has_the_final_answer(server: Running) -> None:
    with server.openai().responses.stream(
        model="one", input="save the file", max_output_tokens=16, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert "response.output_text.done" in kinds
    assert final.output_text == create(server).output_text


def test_logprobs_are_given_on_request(server: Running) -> None:
    answer = create(server, include=["message.output_text.logprobs"], top_logprobs=3)
    logprobs = answer.output[0].content[0].logprobs
    assert len(logprobs) == answer.usage.output_tokens
    assert all(len(token.top_logprobs) == 3 for token in logprobs)


def running(server: Running) -> float:
    """Requests in the engine."""
    lines = server.client().get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    assert found
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_a_caller_who_goes_away_frees_the_engine(server: Running) -> None:
    stream = create(server, max_output_tokens=400, stream=True, extra_body=LONG)
    next(iter(stream))
    stream.close()
    hurried = server.openai().with_options(timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        hurried.responses.create(model="one", input="save", max_output_tokens=480, extra_body=LONG)
    deadline = time.monotonic() + 10
    while running(server) > 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"), ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"), ({"priority": 1}, "priority"),
        ({"cache_salt": "x"}, "cache_salt"), ({"truncation": "auto"}, "truncation"),
    ],
)  # fmt: skip
def test_what_needs_a_state_or_is_the_operators_is_refused(
    server: Running, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, extra_body=more)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_field")


def test_errors_have_our_shape(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        create(server, model="nobody")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        create(server, input="word " * 4000)
    with pytest.raises(openai.BadRequestError) as tools:
        create(server, tools=[{"type": "function", "name": "f", "parameters": {}, "strict": False}])
    assert tools.value.param == "tools"
