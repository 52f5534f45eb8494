"""A model of a running server, asked over HTTP by the routes that users ask."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx

from adapters.bases import Base
from adapters.errors import InvalidInput
from adapters.prompt import Task
from adapters.registry import Version
from finetune.config import Recipe
from finetune.data import Row
from finetune.measures import Outcome, measure
from finetune.own_server import ServerFailed
from finetune.subjects import Told

START = "start"
"""In the place of an address: a server is started."""
READ_LIMIT_S = 600.0
_AT_ONCE = 8
"""Requests in flight: the engine runs them together."""

_ROUTES: dict[Task, tuple[str, str]] = {
    "generate": ("/v1/generate", "text"),
    "translate": ("/v1/translate", "translation"),
    "answer": ("/v1/answer", "answer"),
    "classify": ("/v1/classify", "labels"),
}
"""Of a task: its route, and the field of a result that is the answer."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server; `finetune.subjects.Asked` says what its methods give."""

    client: httpx.Client
    model: str
    digest: str | None
    """Of a version; None for the base."""
    recipe: Recipe
    rows: list[Row]
    labels: list[str]
    told: Told | None = None
    """Losses that the trainer knows; a server tells none of a text that is given."""

    def texts(self, rows: list[Row]) -> list[str]:
        return [str(answer).strip() for answer in self._all(self._text, rows)]

    def label_probabilities(self) -> list[list[float]]:
        return self._all(self._probabilities, self.rows)

    def losses(self, rows: list[Row]) -> tuple[list[float], list[int]] | None:
        if self.told is None:
            return None
        known = [self.told[tuple(row.ids)] for row in rows]
        return [total for total, _ in known], [count for _, count in known]

    def _all(self, ask: Callable[[Row], Any], rows: list[Row]) -> list[Any]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = [pool.submit(ask, row) for row in rows]
            try:
                return [one.result() for one in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _text(self, row: Row) -> str:
        limit = {"max_tokens": self.recipe.evaluation.max_new_tokens}
        if "messages" in row.input:
            body = {**_chat(row.input), **limit, "temperature": 0.0}
            message = self._post("/v1/chat/completions", body)["choices"][0]["message"]
            return str(message["content"] or "")
        greedy = {"temperature": 0.0} if self.recipe.task == "generate" else {}
        return str(self._result({**_given(row), **limit, **greedy}))

    def _probabilities(self, row: Row) -> list[float]:
        of_base = {} if self.digest is not None else {"labels": self.labels}
        rated = self._result({**_given(row), **of_base})
        known = {one["label"]: one["probability"] for one in rated}
        return [known[label] for label in self.labels]

    def _result(self, body: dict[str, Any]) -> Any:
        route, field = _ROUTES[self.recipe.task]
        return self._post(route, body)["results"][0][field]

    def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer as JSON.

        Raises:
            ServerFailed: the server is not there.
            InvalidInput: it refuses, with its reason, or another version answered.
        """
        try:
            response = self.client.post(route, json={**body, "model": self.model})
        except httpx.HTTPError as error:
            raise ServerFailed(
                f"no answer from {self.client.base_url}: {error}",
                hint="start `modiste serve`, or name its address with --server",
            ) from error
        if response.status_code != 200:
            raise InvalidInput(f"{self.model}: {_reason(response)}", param="server")
        receipt = response.headers.get("x-modiste-receipt", "")
        if self.digest is not None and f"digest={self.digest};" not in receipt:
            raise InvalidInput(
                f"{self.model} is another version there: {receipt or 'no receipt'}",
                hint="ask a server of the same registry",
                param="server",
            )
        answer: dict[str, Any] = response.json()
        return answer


def served_outcomes(
    url: str,
    base: Base,
    recipe: Recipe,
    rows: list[Row],
    versions: Mapping[str, Version],
    told: Mapping[str, Told] = MappingProxyType({}),
) -> dict[str, Outcome]:
    """What a server answers as the base and as some versions.

    Args:
        versions: by who they are in a comparison: `adapter`, `live`.
        told: of each model, losses that the server doesn't tell.
    """  # fmt: skip
    outcomes = {}
    models: dict[str, Version | None] = {"base": None, **versions}
    with connect(url) as client:
        for who, version in models.items():
            name = base.name if version is None else version.reference
            digest = None if version is None else version.digest
            labels = (version or versions["adapter"]).manifest.labels
            asked = Served(client, name, digest, recipe, rows, labels, told.get(who))
            outcomes[who] = measure(asked)
    return outcomes


def connect(url: str) -> httpx.Client:
    """A client that `MODISTE_API_KEY` lets in where the server asks for a key.

    Raises:
        InvalidInput: the address is none.
    """
    key = os.environ.get("MODISTE_API_KEY", "")
    headers = {
        # requests that somebody waits for go before them
        "x-modiste-priority": "evaluation", "x-modiste-timeout-s": f"{READ_LIMIT_S:g}",
    }  # fmt: skip
    if key:
        headers["authorization"] = f"Bearer {key}"
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=READ_LIMIT_S)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{url!r} is no address: {error}", param="server") from error


def _given(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.input.items() if value is not None}


def _chat(given: dict[str, Any]) -> dict[str, Any]:
    """A conversation as OpenAI's route takes it: arguments of calls are texts there."""
    messages = []
    for message in given["messages"]:
        sent = {name: value for name, value in message.items() if name != "weight"}
        if "tool_calls" in sent:
            sent["tool_calls"] = [
                {**call, "function": {**call["function"],
                                      "arguments": json.dumps(call["function"]["arguments"])}}
                for call in sent["tool_calls"]
            ]  # fmt: skip
        messages.append(sent)
    # told of its tools, the model answers as text, calls too
    tools = {"tools": given["tools"], "tool_choice": "none"} if "tools" in given else {}
    return {"messages": messages, **tools}


def _reason(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['message']} ({error['hint']})" if error.get("hint") else error["message"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
