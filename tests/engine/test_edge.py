"""What the server refuses, and in which words, on the real app."""

import json
import time

import httpx
import pytest

from tests.serving import Running

NOT_OURS = [
    ("GET", "/docs"), ("GET", "/redoc"), ("POST", "/v1/messages"), ("POST", "/generative_scoring"),
    ("POST", "/v1/chat/completions/batch"), ("POST", "/inference/v1/generate"),
    ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("POST", "/adapters"),
    ("POST", "/invocations"), ("GET", "/ping"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("POST", "/scale_elastic_ep"), ("POST", "/v1/embeddings"), ("GET", "/load"), ("GET", "/health"),
    ("GET", "/v1/responses/r"), ("POST", "/v1/responses/r/cancel"),
    ("POST", "/pause"), ("POST", "/sleep"), ("GET", "/server_info"),
    ("POST", "/v1/completions/render"), ("GET", "/v1"), ("GET", "/"), ("POST", "/metrics/x"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), NOT_OURS)
def test_only_routes_of_the_table_are_reachable(server: Running, method: str, path: str) -> None:
    answer = server.client().request(method, path, json={"model": "tiny", "prompt": "x"})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 5), ("cache_salt", "x"), ("kv_transfer_params", {"a": 1}),
        ("vllm_xargs", {"a": 1}), ("use_beam_search", True), ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"a": 1}), ("prompt_logprobs", 2), ("session_id", "x"),
    ],
)  # fmt: skip
def test_an_operators_field_is_refused(server: Running, field: str, value: object) -> None:
    answer = server.client().post("/v1/chat/completions", json={**CHAT, field: value})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_echo_with_logprobs_is_refused(server: Running) -> None:
    body = {"model": "one", "prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 1}

    answer = server.client().post("/v1/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "echo"


BAD = [
    ("/v1/generate", {"prompt": ""}, "prompt"),
    ("/v1/generate", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ("/v1/generate", {"prompt": "word " * 4000}, "prompt"),
    ("/v1/generate", {"prompt": "a", "json_schema": {"type": "no such type"}}, "json_schema"),
    ("/v1/generate", {"prompt": "a", "unknown": 1}, "unknown"),
    ("/v1/translate", {"text": "a", "target_lang": "zz-nonsense-tag"}, "target_lang"),
    ("/v1/translate", {"text": "a"}, "target_lang"),
    ("/v1/translate", {"text": "", "target_lang": "fr"}, "text"),
    ("/v1/classify", {"text": "a", "labels": ["x", "X "]}, "labels"),
    ("/v1/classify", {"text": "a", "labels": ["only"]}, "labels"),
    ("/v1/classify", {"text": "word " * 4000, "labels": ["x", "y"]}, "text"),
    ("/v1/answer", {"question": "a", "context": {"not": "text"}}, "context"),
    ("/v1/answer", {"question": ""}, "question"),
    ("/v1/chat/completions", {"model": "tiny"}, "messages"),
    ("/v1/chat/completions", {**CHAT, "temperature": "hot"}, "temperature"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_bad_input_names_its_field(
    server: Running, path: str, body: dict[str, object], param: str
) -> None:
    answer = server.client().post(path, json=body)

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param in (error["param"] or ""), error
    assert error["message"]


def test_a_prompt_beyond_the_window_tells_the_limit(server: Running) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "word " * 4000}]}

    answer = server.client().post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert "512" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[]", b"null", b""])
def test_a_body_that_is_no_object_is_a_400(server: Running, body: bytes) -> None:
    answer = server.client().post(
        "/v1/classify", content=body, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused(server: Running) -> None:
    def pieces() -> object:
        for _ in range(17):
            yield b"x" * 2**20

    for content in (b"x" * (17 * 2**20), pieces()):
        try:
            answer = server.client().post("/v1/generate", content=content)  # type: ignore[arg-type]
        except httpx.WriteError:
            continue  # the server closed before it had read all, as it may
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_a_request_id_comes_back_and_a_hostile_one_does_not(server: Running) -> None:
    client = server.client()

    assert client.get("/version", headers={"x-request-id": "a-1"}).headers["x-request-id"] == "a-1"
    given = client.get("/version", headers={"x-request-id": "a b" * 100}).headers["x-request-id"]
    assert len(given) == 32


def test_metrics_count_by_version_and_keep_one_routing_series(server: Running) -> None:
    client = server.client()
    for name in ("one", "two@1", "tiny"):
        client.post("/v1/chat/completions", json={**CHAT, "model": name}).raise_for_status()

    text = client.get("/metrics").text

    assert 'modiste_requests_total{adapter="two",route="/v1/chat/completions",' in text
    assert 'modiste_tokens_total{adapter="one",direction="out"' in text
    assert "vllm:num_requests_running" in text
    assert "http_requests_total{" not in text  # another count of the same
    assert sum(line.startswith("vllm:lora_requests_info{") for line in text.splitlines()) == 1


def test_tokens_are_counted_as_the_answer_says(server: Running) -> None:
    client = server.client()
    name = 'modiste_tokens_total{adapter="two",direction="out",route="/v1/completions"'

    def written() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = written()
    body = {"model": "two@1", "prompt": "a", "max_tokens": 7, "n": 2, "ignore_eos": True}
    whole = client.post("/v1/completions", json=body).json()
    streamed = client.post("/v1/completions", json={**body, "stream": True}).text

    assert whole["usage"]["completion_tokens"] == 14
    assert streamed.rstrip().endswith("data: [DONE]")
    deadline = time.monotonic() + 5  # a request is counted after its last byte was sent
    while written() - before < 28 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert written() - before == 28


def test_version_and_health_answer(server: Running) -> None:
    client = server.client()

    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json()["status"] == "ready"
    assert client.get("/version").json()["base"]["digest"] == server.base.ref.fingerprint
    assert json.dumps(client.get("/version").json()).count("0.32.0") == 1
