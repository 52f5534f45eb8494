"""A probability for each label, from the log-probabilities of the labels' tokens."""

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.prompt import ClassifyInput, Renderer
from service.engine import Output, Sampling
from service.errors import BadRequest, EngineFailed
from service.tasks.batch import together, usage_of
from service.tasks.labels import Path, branches, check_labels, probabilities
from service.tasks.responses import ClassifyResult, LabelProbability
from service.tasks.wire import ClassifyRequest, check_size

if TYPE_CHECKING:
    from service.engine import Engine
    from service.models import Resolved

MAX_SCORES = 128  # token ids that the engine scores in one request


@dataclass(frozen=True, slots=True)
class Classification:
    """A valid request; labels of None are the adapter's own."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Tree:
    """Labels as token sequences, and where they part."""

    labels: tuple[str, ...]
    sequences: tuple[Path, ...]
    branches: Mapping[Path, Path]

    @property
    def depth(self) -> int:
        return max(map(len, self.branches))


def check(request: ClassifyRequest) -> Classification:
    """Raises BadRequest: a blank, single or repeated label; TooLarge: too much text."""
    check_size(request.text, "text")
    labels = None if request.labels is None else check_labels(request.labels)
    return Classification(request.text, labels)


async def run(asked: Classification, engine: "Engine", model: "Resolved") -> list[ClassifyResult]:
    """One result for each text, in order, from one batch.

    Labels whose first tokens differ need one engine request a text; each further place
    where labels part needs one more, on a prompt that is cached by then.
    """
    labels = model.labels if asked.labels is None else asked.labels
    if not labels:
        raise BadRequest(
            f"labels is missing and {model.reference} has none of its own",
            param="labels",
            hint="give labels, or a model that was trained to classify",
        )
    tree = await asyncio.to_thread(_tree, engine.renderer, labels)
    return await together(
        _classify(index, text, tree, engine, model) for index, text in enumerate(asked.texts)
    )


@functools.lru_cache(maxsize=64)
def _tree(renderer: Renderer, labels: tuple[str, ...]) -> _Tree:
    sequences = tuple(tuple(renderer.completion_ids(label)) for label in labels)
    return _Tree(labels, sequences, branches(sequences))


async def _classify(
    index: int, text: str, tree: _Tree, engine: "Engine", model: "Resolved"
) -> ClassifyResult:
    template = model.template("classify")
    prompt_ids = await engine.prompt_ids(template, ClassifyInput(text, tree.labels))
    most = engine.max_model_len - tree.depth - 1
    if len(prompt_ids) > most:
        raise BadRequest(
            f"text makes a prompt of {len(prompt_ids)} tokens; with these labels the model's "
            f"window has room for {most}",
            param="text",
            hint="shorten the text: it is never cut silently",
            code="context_length_exceeded",
        )
    asked = [
        (path, tokens[first : first + MAX_SCORES])
        for path, tokens in tree.branches.items()
        for first in range(0, len(tokens), MAX_SCORES)
    ]
    outputs = await together(
        engine.generate([*prompt_ids, *path], Sampling(max_tokens=1, score_ids=tokens), model)
        for path, tokens in asked
    )
    scores: dict[Path, dict[int, float]] = {}
    for (path, tokens), output in zip(asked, outputs, strict=True):
        scores.setdefault(path, {}).update(_scores(output, tokens))
    return _result(index, tree, probabilities(tree.sequences, scores), outputs)


def _scores(output: Output, tokens: Path) -> dict[int, float]:
    if not output.scores:
        raise EngineFailed("the engine returned no scores for the labels")
    return {token: output.scores[0][token] for token in tokens}


def _result(
    index: int, tree: _Tree, likelihoods: list[float], outputs: list[Output]
) -> ClassifyResult:
    ranked = sorted(
        (
            LabelProbability(label=label, probability=likelihood)
            for label, likelihood in zip(tree.labels, likelihoods, strict=True)
        ),
        key=lambda item: -item.probability,
    )
    return ClassifyResult(
        index=index,
        label=ranked[0].label,
        probability=ranked[0].probability,
        labels=ranked,
        usage=usage_of(outputs),
    )
