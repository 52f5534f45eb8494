"""One text asked of several versions through a running server."""

import os
from collections.abc import Sequence
from typing import Any

import httpx

from adapters.errors import InvalidInput, StoreFailed
from adapters.registry import Version

READ_LIMIT_S = 300.0
MAX_TOKENS = 128


def answers_of(server: str, versions: Sequence[Version], text: str) -> list[str]:
    """The versions' answers in their own tasks, greedy where text is written, as one line each.

    Raises:
        StoreFailed: the server is not there.
        InvalidInput: it refuses; with its reason.
    """
    key = os.environ.get("MODISTE_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=server, headers=headers, timeout=READ_LIMIT_S) as client:
        return [_answer(client, version, text) for version in versions]


def _answer(client: httpx.Client, version: Version, text: str) -> str:
    body = {**_body(version, text), "model": version.reference}
    try:
        response = client.post(f"/v1/{version.manifest.task}", json=body)
    except httpx.HTTPError as error:
        raise StoreFailed(
            f"no answer from {client.base_url}: {error}",
            hint="start `modiste serve`, or name its address with --server",
        ) from error
    if response.status_code != 200:
        raise InvalidInput(f"{version.reference}: {_reason(response)}")
    return _shown(version.manifest.task, response.json())


def _body(version: Version, text: str) -> dict[str, Any]:
    manifest = version.manifest
    if manifest.task == "translate":
        source, target = manifest.languages
        return {"text": text, "source_lang": source, "target_lang": target}
    if manifest.task == "classify":
        return {"text": text}
    if manifest.task == "answer":
        return {"question": text, "max_tokens": MAX_TOKENS}
    return {"prompt": text, "temperature": 0.0, "max_tokens": MAX_TOKENS}


def _shown(task: str, answer: dict[str, Any]) -> str:
    result = answer["results"][0]
    if task == "translate":
        return str(result["translation"])
    if task == "classify":
        return ", ".join(
            f"{rated['label']} {rated['probability']:.3f}" for rated in result["labels"]
        )
    if task == "answer":
        return str(result["answer"])
    return str(result["text"])


def _reason(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['message']} ({error['hint']})" if error.get("hint") else error["message"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
