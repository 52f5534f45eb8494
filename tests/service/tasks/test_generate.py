"""`/v1/generate`."""

import asyncio
import json

import pytest

from tests.service.tasks.fake import FakeEngine, make_app, post, results


def test_a_list_keeps_its_order_and_runs_as_one_batch() -> None:
    engine = FakeEngine(lambda text, _: text.upper())
    prompts = [f"prompt {number}" for number in range(9)]
    response = post(make_app(engine), "/v1/generate", prompt=prompts)
    found = results(response)
    assert [item["text"] for item in found] == [prompt.upper() for prompt in prompts]
    assert [item["index"] for item in found] == list(range(9))
    assert engine.most_running == 9
    body = response.json()
    assert (body["object"], body["model"]) == ("generate", "tiny")
    written = sum(item["usage"]["completion_tokens"] for item in found)
    read = sum(item["usage"]["prompt_tokens"] for item in found)
    assert body["usage"] == {
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
    }  # fmt: skip


def test_sampling_reaches_the_engine_as_asked() -> None:
    engine = FakeEngine()
    wanted = {
        "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7,
        "frequency_penalty": 1, "presence_penalty": -1, "repetition_penalty": 1.1,
        "max_tokens": 5, "json_schema": {"type": "object"},
    }  # fmt: skip
    results(post(make_app(engine), "/v1/generate", prompt="x", stop="end", **wanted))
    sampling = engine.calls[0][1]
    assert {name: getattr(sampling, name) for name in wanted} == wanted
    assert sampling.stop == ("end",)


def test_max_tokens_is_bounded_by_the_window() -> None:
    engine = FakeEngine(lambda *_: "word " * 500)
    engine.max_model_len = 100
    [found] = results(post(make_app(engine), "/v1/generate", prompt="x", max_tokens=5000))
    prompt_ids, sampling = engine.calls[0]
    assert len(prompt_ids) + sampling.max_tokens == 100
    assert found["finish_reason"] == "length"
    assert [warning["code"] for warning in found["warnings"]] == ["truncated"]


def test_a_prompt_beyond_the_window_is_refused_before_the_engine() -> None:
    engine = FakeEngine()
    engine.max_model_len = 100
    response = post(make_app(engine), "/v1/generate", prompt=["short", "long " * 100])
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "100 tokens" in error["message"]
    assert engine.calls == []


def deep_schema(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "no JSON Schema at $.type"),
        ({"minimum": "one"}, "minimum"),
        (deep_schema(40), "levels deep"),
        ({"enum": ["x" * 70_000]}, "bytes"),
        ({"$ref": "https://example.com/schema"}, "refers to"),
        ({"pattern": "("}, "json_schema"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict, message: str) -> None:
    response = post(make_app(FakeEngine()), "/v1/generate", prompt="x", json_schema=schema)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "json_schema"
    assert message in response.json()["error"]["message"]


def events_of(text: str) -> list:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_says_the_same_as_the_whole_for_every_prompt() -> None:
    engine = FakeEngine(lambda text, _: f"é {text} 中文")
    app = make_app(engine)
    response = post(app, "/v1/generate", prompt=["one", "two"], stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    whole = results(post(app, "/v1/generate", prompt=["one", "two"]))
    for index, expected in enumerate(whole):
        mine = [event for event in events if event["index"] == index]
        assert "".join(event.get("delta", "") for event in mine) == expected["text"]
        assert mine[-1] == {"index": index, "finish_reason": "stop", "result": expected}


def test_a_stream_that_fails_at_once_has_its_own_status() -> None:
    engine = FakeEngine()
    engine.max_model_len = 20
    response = post(make_app(engine), "/v1/generate", prompt="long " * 50, stream=True)
    assert response.status_code == 400


def test_a_stream_that_fails_later_ends_with_an_error_event() -> None:
    engine = FakeEngine()
    original = engine.stream

    async def breaks(*args):
        async for piece in original(*args):
            piece.output = None
            yield piece

    engine.stream = breaks
    events = events_of(post(make_app(engine), "/v1/generate", prompt="abc", stream=True).text)
    assert events[-1]["error"]["code"] == "engine_failed"


async def cut(app, path: str, body: dict, until) -> None:
    """Send a request and vanish once `until()` holds."""
    sent = False

    async def receive() -> dict:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        while not until():  # noqa: ASYNC110 - what is waited for is a count, not an event
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "scheme": "http",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"},
        "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    for _ in range(100):
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": ["a", "b", "c"]}),
        ("/v1/translate", {"text": ["one a", "two b", "three c"], "target_lang": "fr"}),
        ("/v1/answer", {"question": "q", "context": ["a", "b", "c"]}),
        ("/v1/classify", {"text": ["a", "b", "c"], "labels": ["x", "y"]}),
    ],
)
def test_a_vanished_client_frees_every_request_of_its_list(path: str, body: dict) -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        engine.gate = asyncio.Event()
        await cut(make_app(engine), path, body, lambda: engine.running >= 3)

    asyncio.run(scenario())
    assert (engine.cancelled, engine.running) == (3, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": ["long text", "longer text"], "stream": True}),
        ("/v1/translate", {"text": "a long text", "target_lang": "fr", "stream": True}),
        ("/v1/answer", {"question": "a long question", "stream": True}),
    ],
)
def test_a_vanished_reader_of_a_stream_frees_its_requests(path: str, body: dict) -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        engine.gate = asyncio.Event()
        await cut(make_app(engine), path, body, lambda: engine.calls)

    asyncio.run(scenario())
    assert engine.cancelled == len(engine.calls)


def test_a_failing_item_fails_the_list_and_frees_the_others() -> None:
    engine = FakeEngine()
    engine.fails_on = "bad"
    response = post(make_app(engine), "/v1/generate", prompt=["good", "bad", "good"])
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_failed"
    assert engine.running == 0
