"""POST /v1/responses around vLLM's own events, without its engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from vllm.entrypoints.openai.responses.context import SimpleContext
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.outputs import CompletionOutput, RequestOutput

from service import errors
from service.admission.queue import Admission, Limits
from service.admission.room import Room
from service.auth import ANONYMOUS, Authenticator
from service.engine import engine_errors
from service.errors import EngineFailed
from service.middleware import Bound, Bounds, Edge, Table
from service.models import Resolved
from service.record import current_record
from service.routes import responses
from service.routes.responses import check_stateless
from service.settings import Settings
from service.telemetry import Metrics
from service.traffic import Traffic
from tests.service.tasks.fake import AnyGrammar

WORDS = ["the ", "file ", "is ", "open"]


class Handler(OpenAIServingResponses):
    """vLLM's, from where the engine has answered on."""

    def __init__(self, finish: str = "stop", breaks: Exception | None = None) -> None:
        self.use_harmony = self.enable_store = self.enable_per_request_metrics = False
        self.enable_log_outputs, self.parser, self.tool_server = False, None, None
        self.finish, self.breaks = finish, breaks
        self.asked: Any = None
        self.closed = False

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        self.asked = request
        if request.instructions == "too long":
            info = ErrorInfo(message="too long", type="x", param="input", code=400)
            return ErrorResponse(error=info)
        context = SimpleContext(response_parser=None)
        parameters = (
            request, request.to_sampling_params(100, {}), self.outputs(context, request.stream),
            context, "x@1", None, SimpleNamespace(),
        )  # fmt: skip
        if request.stream:
            return self.responses_stream_generator(*parameters)  # type: ignore[arg-type]
        return await self.responses_full_generator(*parameters)  # type: ignore[arg-type]

    async def outputs(self, context: SimpleContext, stream: bool) -> AsyncIterator[Any]:
        texts = WORDS if stream else ["".join(WORDS)]
        try:
            for number, text in enumerate(texts, start=1):
                if self.breaks is not None and number == 3:
                    raise self.breaks
                last = number == len(texts)
                made = CompletionOutput(
                    0, text, [number], None, None, finish_reason=self.finish if last else None
                )
                context.append_output(RequestOutput("r", None, [1, 2, 3], None, [made], last))
                yield context
        finally:
            self.closed = True


class Models:
    async def resolve(self, reference: str, **_: Any) -> Resolved:
        record = current_record()
        assert record is not None
        record.model = Resolved("x@1", "sha256:ab", "proved", engine_name="engine-ab")
        return record.model


def app_around(handler: Handler) -> FastAPI:
    app = FastAPI()
    app.include_router(responses.router)
    metrics = Metrics(CollectorRegistry())
    admission = Admission(Room(8), Limits(9, 10**6, wait_s=1), metrics, Traffic())
    app.state.modiste = SimpleNamespace(
        models=Models(), settings=Settings(), grammars=AnyGrammar(), admission=admission
    )
    app.state.args = SimpleNamespace(sse_keep_alive_interval=0)
    app.state.openai_serving_responses = handler
    errors.install(app, engine_errors())
    bounds = Bounds(Bound(10_000, "max_body_bytes"), {})
    app.add_middleware(
        Edge, table=Table.of(["/v1/responses"]), authenticator=Authenticator([]),
        metrics=metrics, bounds=bounds,
    )  # fmt: skip
    return app


def ask(handler: Handler, work: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """Something with OpenAI's client."""

    async def send() -> Any:
        transport = httpx.ASGITransport(app_around(handler), raise_app_exceptions=False)
        client = openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="none", max_retries=0,
            http_client=httpx.AsyncClient(transport=transport),
        )  # fmt: skip
        async with client:
            return await work(client)

    return asyncio.run(send())


def create(handler: Handler, **body: Any) -> Any:
    return ask(handler, lambda c: c.responses.create(**({"model": "x", "input": "save"} | body)))


def test_an_answer_is_openais_and_says_that_it_is_not_kept() -> None:
    handler = Handler()
    raw = ask(handler, lambda c: c.responses.with_raw_response.create(model="x", input="save"))
    answer = raw.parse()
    assert answer.output_text == "the file is open"
    assert (answer.model, answer.status, answer.object) == ("x@1", "completed", "response")
    assert answer.usage.input_tokens == 3
    assert raw.http_response.json()["store"] is False
    assert raw.http_response.json()["error"] is None
    assert raw.headers["x-modiste-receipt"] == "version=x@1; digest=sha256:ab; proof=proved"
    assert handler.asked.model == "engine-ab"
    assert handler.asked.cache_salt == ANONYMOUS.project
    assert handler.asked.store is False


def test_a_stream_has_openais_events_in_their_order() -> None:
    async def read(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.responses.create(model="x", input="save", stream=True)
        return [event async for event in stream]

    events = ask(Handler(), read)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        "the file is open"
    )
    for event in (events[0], events[1], events[-1]):
        assert (event.response.model, event.response.store) == ("x@1", False)


@pytest.mark.parametrize(("finish", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_the_clients_own_reader_of_streams_has_the_final_answer(finish: str, status: str) -> None:
    async def read(client: openai.AsyncOpenAI) -> Any:
        async with client.responses.stream(model="x", input="save") as stream:
            return await stream.get_final_response()

    final = ask(Handler(finish), read)
    assert (final.output_text, final.status) == ("the file is open", status)


@pytest.mark.parametrize(
    ("breaks", "code"),
    [(EngineFailed("it stopped"), "engine_failed"), (RuntimeError("/a/path"), "server_error")],
)
def test_what_breaks_in_a_stream_is_raised_by_the_client(breaks: Exception, code: str) -> None:
    async def read(client: openai.AsyncOpenAI) -> None:
        async for _ in await client.responses.create(model="x", input="save", stream=True):
            pass

    handler = Handler(breaks=breaks)
    with pytest.raises(openai.APIError) as caught:
        ask(handler, read)
    assert caught.value.code == code
    assert "/a/path" not in str(caught.value)
    assert handler.closed


STATEFUL = [
    ({"store": True}, "store"),
    ({"background": True}, "background"),
    ({"background": True, "store": False}, "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": [{"type": "mcp", "server_label": "a", "server_url": "http://a"}]}, "tools"),
]
OPERATORS = [
    {"priority": 3}, {"request_id": "mine"}, {"session_id": "a"}, {"cache_salt": "b"},
    {"vllm_xargs": {"a": 1}}, {"kv_transfer_params": {"a": 1}}, {"ec_transfer_params": {"a": 1}},
    {"mm_processor_kwargs": {"a": 1}}, {"media_io_kwargs": {"image": {"a": 1}}},
    {"chat_template_kwargs": {"a": 1}}, {"enable_response_messages": True}, {"watermarking": True},
    {"previous_input_messages": [{"role": "user", "content": "a"}]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "param"), [*STATEFUL, *[(field, next(iter(field))) for field in OPERATORS]]
)
def test_what_needs_a_state_or_is_the_operators_is_refused(
    more: dict[str, Any], param: str
) -> None:
    handler = Handler()
    with pytest.raises(openai.BadRequestError) as caught:
        create(handler, extra_body=more)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_field")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["hint"]
    assert handler.asked is None


@pytest.mark.parametrize(
    "body",
    [
        {}, {"input": [{"role": "user", "content": "a"}]},
        {"tools": [{"type": "function", "name": "f"}]}, {"tools": "wrong"}, {"input": [1]},
    ],
)  # fmt: skip
def test_what_is_stateless_passes(body: dict[str, Any]) -> None:
    check_stateless(body)


def test_tools_without_a_parser_are_refused_and_not_ignored() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    with pytest.raises(openai.BadRequestError) as caught:
        create(Handler(), tools=[tool], tool_choice="required")
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_field")
    assert create(Handler(), tools=[tool], tool_choice="none").status == "completed"


@pytest.mark.parametrize(
    ("body", "param"),
    [({"temperature": "hot"}, "temperature"), ({"model": None}, "model"), ({"input": 5}, "input")],
)
def test_bad_input_names_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(Handler(), extra_body=body)
    assert isinstance(caught.value.param, str)
    assert caught.value.param.startswith(param)


def test_an_error_of_vllms_has_our_shape() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(Handler(), instructions="too long")
    assert (caught.value.param, caught.value.code) == ("input", "invalid_value")


def test_a_body_that_is_no_json_is_told() -> None:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app_around(Handler()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"content-type": "application/json"}
            return await client.post("/v1/responses", content=b"{", headers=headers)

    answer = asyncio.run(send())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_created_is_now() -> None:
    assert create(Handler()).created_at == pytest.approx(time.time(), abs=60)
