"""What is asked: passages of real text, with their real spread of lengths, as request bodies.

By default the passages come from the language reference that lies in every Python installation
(`pydoc_data.topics`): some 2,000 passages, from a few words to hundreds, without a download.
"""

import importlib.util
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from loadtests.scenario import Kind, Scenario, ScenarioError

PATHS: dict[Kind, str] = {
    "chat": "/v1/chat/completions",
    "chat_stream": "/v1/chat/completions",
    "generate": "/v1/generate",
    "generate_stream": "/v1/generate",
    "translate": "/v1/translate",
    "translate_stream": "/v1/translate",
    "answer": "/v1/answer",
    "classify": "/v1/classify",
}
QUOTED_WORDS = 5


@dataclass(frozen=True)
class Call:
    """One request, ready to send."""

    kind: Kind
    path: str
    body: dict[str, Any]

    @property
    def streamed(self) -> bool:
        return self.kind.endswith("_stream")


def read_passages(source: str) -> list[str]:
    """The passages of a scenario's `prompts`. Raises ScenarioError when there are none."""
    try:
        passages = list(_passages(source))
    except (OSError, ValueError) as error:
        raise ScenarioError(f"prompts: cannot read {source!r}: {error}") from error
    if not passages:
        raise ScenarioError(f"prompts: {source!r} holds no text")
    return passages


def _passages(source: str) -> Iterator[str]:
    if source == "python":
        return split_passages(topics.values())
    if source.startswith("package:"):
        return split_passages([_in_package(*source.removeprefix("package:").split("/", 1))])
    text = Path(source).read_text(encoding="utf-8")
    if source.endswith(".jsonl"):
        return _jsonl_passages(text)
    return split_passages([text])


def _in_package(package: str, inside: str = "") -> str:
    # Found without importing it: some packages patch or start things on import.
    spec = importlib.util.find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations
    if not folders:
        raise ValueError(f"no package {package!r} is installed")
    return Path(folders[0], inside).read_text(encoding="utf-8")


def split_passages(texts: Iterable[str]) -> Iterator[str]:
    """Each text's passages: what stands between blank lines, on one line."""
    for text in texts:
        for passage in re.split(r"\n\s*\n", text):
            line = " ".join(passage.split())
            if line:
                yield line


def _jsonl_passages(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        passage = row.get("prompt", row.get("text")) if isinstance(row, dict) else row
        if not isinstance(passage, str):
            raise ScenarioError(
                f'prompts: line {number}: give a string, {{"prompt": …}} or {{"text": …}}'
            )
        yield passage


class Workload:
    """An endless supply of calls; the same seed gives the same calls.

    Passages go round in shuffled order, so that none comes twice before all have come once:
    a repeated prompt would be answered from the server's prefix cache.
    """

    def __init__(self, scenario: Scenario, chat_model: str) -> None:
        least, most = scenario.prompt_words
        self._scenario = scenario
        self._chat_model = chat_model
        self._random = random.Random(scenario.seed)  # noqa: S311  # draws a load
        self._passages = [
            passage
            for passage in read_passages(scenario.prompts)
            if least <= len(passage.split()) <= most
        ]
        if not self._passages:
            raise ScenarioError(f"prompts: no passage has {least} to {most} words")
        self._queue: list[str] = []

    def kinds(self) -> Iterator[Kind]:
        """Kinds at random, by the weights of the mix."""
        kinds, weights = list(self._scenario.mix), list(self._scenario.mix.values())
        while True:
            yield self._random.choices(kinds, weights)[0]

    def call(self, kind: Kind) -> Call:
        """The next request of this kind."""
        body = self._inputs(kind, self._next_passage())
        model = self._model(kind)
        if model is not None:
            body["model"] = model
        if kind.endswith("_stream"):
            body["stream"] = True
        if kind == "chat_stream":
            body["stream_options"] = {"include_usage": True}
        return Call(kind, PATHS[kind], body)

    def _next_passage(self) -> str:
        if not self._queue:
            self._queue = self._random.sample(self._passages, len(self._passages))
        return self._queue.pop()

    def _model(self, kind: Kind) -> str | None:
        if self._scenario.models:
            return self._random.choice(self._scenario.models)
        return self._chat_model if kind.startswith(("chat", "generate")) else None

    def _inputs(self, kind: Kind, passage: str) -> dict[str, Any]:
        scenario = self._scenario
        length = {"max_tokens": scenario.max_tokens}
        sampling = {**length, "temperature": scenario.temperature}
        match kind:
            case "chat" | "chat_stream":
                return {"messages": [{"role": "user", "content": passage}], **sampling}
            case "generate" | "generate_stream":
                return {"prompt": passage, **sampling}
            case "translate" | "translate_stream":
                languages = {
                    "source_lang": scenario.source_lang,
                    "target_lang": scenario.target_lang,
                }
                return {"text": passage, **languages, **length}
            case "answer":
                quoted = " ".join(passage.split()[:QUOTED_WORDS])
                question = f"What is said about “{quoted}”?"
                return {"question": question, "context": passage, **length}
            case "classify":
                return {"text": passage, "labels": list(scenario.labels)}
