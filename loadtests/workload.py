"""What is asked: passages of real text, with their real spread of lengths, as request bodies.

By default the passages come from the language reference that lies in every Python installation
(`pydoc_data.topics`): some 2,000 passages, from a few words to hundreds, without a download.
"""

import fnmatch
import importlib.util
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from loadtests.scenario import OPENAI, Kind, Scenario, ScenarioError

PATHS: dict[Kind, str] = {
    "chat": "/v1/chat/completions",
    "chat_stream": "/v1/chat/completions",
    "completion": "/v1/completions",
    "completion_stream": "/v1/completions",
    "generate": "/v1/generate",
    "generate_stream": "/v1/generate",
    "translate": "/v1/translate",
    "translate_stream": "/v1/translate",
    "translate_list": "/v1/translate",
    "answer": "/v1/answer",
    "answer_many": "/v1/answer",
    "classify": "/v1/classify",
    "classify_list": "/v1/classify",
}
QUOTED_WORDS = 5
_RANGE = re.compile(r"([^{}]*)\{(\d{1,6})\.\.(\d{1,6})\}([^{}]*)")


@dataclass(frozen=True)
class Call:
    """One request, ready to send."""

    kind: Kind
    path: str
    body: dict[str, Any]

    @property
    def streamed(self) -> bool:
        return self.kind.endswith("_stream")

    @cached_property
    def payload(self) -> bytes:
        """The body as it is sent; made beforehand, it costs no time of the request."""
        return json.dumps(self.body).encode()


def expand_models(names: Iterable[str], listed: Sequence[str]) -> list[str]:
    """Names from `name-{1..64}` and from patterns of what the server lists.

    Raises:
        ScenarioError: a pattern that nothing listed matches.
    """
    models: list[str] = []
    for name in names:
        numbered = _RANGE.fullmatch(name)
        if numbered is not None:
            first, last = int(numbered[2]), int(numbered[3])
            models += [f"{numbered[1]}{n}{numbered[4]}" for n in range(first, last + 1)]
        elif "*" in name or "?" in name:
            found = fnmatch.filter(listed, name)
            if not found:
                raise ScenarioError(f"models: the server lists none that matches {name!r}")
            models += found
        else:
            models.append(name)
    return models


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

    def __init__(
        self, scenario: Scenario, chat_model: str, listed: Sequence[str] = (), worker: int = 0
    ) -> None:
        """listed: the server's models. Workers ask different things with one seed."""
        least, most = scenario.prompt_words
        self._scenario = scenario
        self._chat_model = chat_model
        self._random = random.Random(scenario.seed + 7919 * worker)  # noqa: S311  # draws a load
        self._passages = [
            passage
            for passage in read_passages(scenario.prompts)
            if least <= len(passage.split()) <= most
        ]
        if not self._passages:
            raise ScenarioError(f"prompts: no passage has {least} to {most} words")
        self._queue: list[str] = []
        by_kind = scenario.models if isinstance(scenario.models, dict) else None
        names = () if isinstance(scenario.models, dict) else scenario.models
        self._models = {
            kind: expand_models(names if by_kind is None else by_kind.get(kind, ()), listed)
            for kind in scenario.mix
        }

    @property
    def words(self) -> list[str]:
        """Every word of the passages, as often as it occurs."""
        return [word for passage in self._passages for word in passage.split()]

    def call(self, kind: Kind, prompt: str | None = None, max_tokens: int | None = None) -> Call:
        """The next request of this kind; with a text or a length of its own, where given."""
        passage = self.passage() if prompt is None else prompt
        tokens = self._scenario.max_tokens if max_tokens is None else max_tokens
        body = self._inputs(kind, passage, tokens)
        model = self._model(kind)
        if model is not None:
            body["model"] = model
        if kind.endswith("_stream"):
            body["stream"] = True
        if kind in {"chat_stream", "completion_stream"}:
            body["stream_options"] = {"include_usage": True}
        return Call(kind, PATHS[kind], body)

    def passage(self) -> str:
        """The next text."""
        if not self._queue:
            self._queue = self._random.sample(self._passages, len(self._passages))
        return self._queue.pop()

    def _model(self, kind: Kind) -> str | None:
        models = self._models.get(kind)
        if models:
            weights = [1 / place**self._scenario.zipf for place in range(1, len(models) + 1)]
            return self._random.choices(models, weights)[0]
        return self._chat_model if kind in OPENAI or kind.startswith("generate") else None

    def _inputs(self, kind: Kind, passage: str, max_tokens: int) -> dict[str, Any]:
        scenario = self._scenario
        length: dict[str, Any] = {"max_tokens": max_tokens}
        sampling = {**length, "temperature": scenario.temperature}
        if scenario.ignore_eos and kind in OPENAI:
            sampling["ignore_eos"] = True
        match kind:
            case "chat" | "chat_stream":
                return {"messages": [{"role": "user", "content": passage}], **sampling}
            case "completion" | "completion_stream" | "generate" | "generate_stream":
                return {"prompt": passage, **sampling}
            case "translate" | "translate_stream" | "translate_list":
                languages = {
                    "source_lang": scenario.source_lang,
                    "target_lang": scenario.target_lang,
                }
                return {"text": self._one_or_list(kind, passage), **languages, **length}
            case "answer":
                return {"question": _question(passage, 0), "context": passage, **length}
            case "answer_many":
                # one context that all questions share
                questions = [_question(passage, n) for n in range(scenario.list_size)]
                return {"question": questions, "context": passage, **length}
            case "classify" | "classify_list":
                text = self._one_or_list(kind, passage)
                return {"text": text, "labels": list(scenario.labels)}

    def _one_or_list(self, kind: Kind, passage: str) -> str | list[str]:
        if not kind.endswith("_list"):
            return passage
        return [passage, *(self.passage() for _ in range(self._scenario.list_size - 1))]


def _question(passage: str, number: int) -> str:
    words = passage.split()
    begin = number * QUOTED_WORDS % max(1, len(words) - QUOTED_WORDS + 1)
    quoted = " ".join(words[begin : begin + QUOTED_WORDS])
    return f"What is said about “{quoted}”?"
