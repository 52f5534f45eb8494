"""Batches by the real engine: each line is answered as the same request would be alone."""

import json
import time
from typing import Any

import openai
import pytest

from tests.serving import Running

CHAT = [{"role": "user", "content": "save the file"}]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": model, "messages": CHAT, "max_tokens": 6, "temperature": 0}
        for model in ("one", "two@1", "tiny")
    ],
    "/v1/completions": [{"model": "one", "prompt": "save the", "max_tokens": 4, "temperature": 0}],
    "/v1/responses": [{"model": "one", "input": "save the file", "max_output_tokens": 6}],
    "/v1/generate": [{"model": "one", "prompt": ["save", "it"], "max_tokens": 4, "temperature": 0}],
    "/v1/translate": [{"text": "save the file", "source_lang": "en", "target_lang": "fr"}],
    "/v1/answer": [{"question": "which file?", "context": "The file is open."}],
    "/v1/classify": [{"model": "mood", "text": "good"}],
}


def ask(client: openai.OpenAI, endpoint: str, lines: list[dict[str, Any]]) -> Any:
    content = "".join(
        json.dumps({"custom_id": f"n{at}", "method": "POST", "url": endpoint, "body": body}) + "\n"
        for at, body in enumerate(lines)
    )
    file = client.files.create(file=("asked.jsonl", content.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",  # type: ignore[arg-type]
    )
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [] if file is None else [json.loads(x) for x in client.files.content(file).iter_lines()]


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from request to request."""
    return {key: value for key, value in body.items() if not key.startswith(("id", "created"))}


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Every leaf by its place: numbers of a batch may differ in the last digits."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in parts for k, v in flat(part, f"{place}.{key}").items()}
    return {place: value}


@pytest.mark.parametrize("endpoint", BODIES)
def test_a_line_is_answered_as_a_request_alone(server: Running, endpoint: str) -> None:
    client = server.openai()
    batch = ask(client, endpoint, BODIES[endpoint])
    assert batch.status == "completed", batch
    assert lines_of(client, batch.error_file_id) == []
    lines = lines_of(client, batch.output_file_id)
    assert len(lines) == len(BODIES[endpoint])
    with server.client() as http:
        for line, body in zip(lines, BODIES[endpoint], strict=True):
            alone = http.post(endpoint, json=body)
            response = line["response"]
            assert response["receipt"] == alone.headers["x-modiste-receipt"]
            told, expected = plain(response["body"]), plain(alone.json())
            if endpoint == "/v1/responses":  # sampled, and with ids within
                assert told["model"] == expected["model"]
                continue
            assert flat(told) == pytest.approx(flat(expected), abs=1e-4)


def test_errors_of_lines_are_those_of_requests(server: Running) -> None:
    client = server.openai()
    wrong = [
        {"model": "none", "messages": CHAT},
        {"model": "one", "messages": CHAT, "priority": -5},
        {"messages": CHAT},
        {"model": "one", "messages": "hi"},
    ]
    batch = ask(client, "/v1/chat/completions", wrong)
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 0, "failed": 4}
    assert batch.output_file_id is None
    statuses, codes = zip(
        *(
            (line["response"]["status_code"], line["response"]["body"]["error"]["code"])
            for line in lines_of(client, batch.error_file_id)
        ),
        strict=True,
    )
    assert statuses == (404, 400, 400, 400)
    assert codes[:3] == ("model_not_found", "unsupported_field", "missing_field")
