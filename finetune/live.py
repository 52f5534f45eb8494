"""The version that is live while another one is evaluated, on the same examples."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.bases import Base
from adapters.errors import AdapterError, NotFound
from adapters.prompt import (
    AnswerInput,
    ClassifyInput,
    GenerateInput,
    Renderer,
    TaskInput,
    TranslateInput,
)
from adapters.registry import Registry, Version
from finetune.config import Recipe
from finetune.data import Row
from finetune.subjects import Subject

_ADAPTER = "worn"
_TRAINED = "default"
"""peft's name of an adapter that was loaded without one."""


@dataclass(frozen=True, slots=True)
class Live:
    """What the alias `production` points at."""

    reference: str
    """`name@7`, for people."""
    digest: str
    version: Version | None
    """None where it can't be compared."""
    reason: str = ""
    """Why it can't."""

    @property
    def identity(self) -> str:
        """`name@sha256:…`, which means the same in every installation."""
        return f"{self.reference.partition('@')[0]}@{self.digest}"


def find_live(registry: Registry, recipe: Recipe, base: Base) -> Live | None:
    """The live version of a recipe's adapter; None where there is none."""
    try:
        version = registry.find(recipe.name)
    except NotFound:
        return None
    reason = ""
    wanted = version.manifest.base
    if not recipe.evaluation.compare_live:
        reason = "evaluation.compare_live is off"
    elif version.manifest.task != recipe.task:
        reason = f"it is for {version.manifest.task}"
    elif wanted.differences(base.ref):
        reason = f"it was made for another base, {wanted.name}"
    else:
        try:
            registry.verified(version.reference)
        except AdapterError as error:
            reason = error.message
    return Live(version.reference, version.digest, None if reason else version, reason)


@contextmanager
def worn(model: Any, folder: Path) -> Iterator[None]:
    """A peft model answers with the adapter of a folder while the block runs."""
    model.load_adapter(str(folder), _ADAPTER, torch_device=str(model.device))
    try:
        model.set_adapter(_ADAPTER)
        model.requires_grad_(False).eval()
        yield
    finally:
        model.set_adapter(_TRAINED)
        model.delete_adapter(_ADAPTER)
        model.requires_grad_(False)


def subject_of(version: Version, subject: Subject) -> Subject:
    """What a version is asked: the same inputs, in its own prompt and with its own labels."""
    manifest = version.manifest
    if manifest.prompt == subject.recipe.template and manifest.labels == subject.labels:
        return subject
    renderer = Renderer(subject.tokenizer)
    rows = [_asked_by(version, row, renderer) for row in subject.rows]
    return dataclasses.replace(subject, rows=rows, labels=list(manifest.labels))


def _asked_by(version: Version, row: Row, renderer: Renderer) -> Row:
    if "messages" in row.input:  # a conversation has no template of ours
        return row
    manifest = version.manifest
    prompt = renderer.prompt_ids(manifest.prompt, _task_input(row.input, manifest.labels))
    said = [row.ids[position] for position in row.supervised]
    return dataclasses.replace(
        row, prompt_ids=prompt, ids=[*prompt, *said],
        supervised=list(range(len(prompt), len(prompt) + len(said))),
    )  # fmt: skip


def _task_input(given: dict[str, Any], labels: list[str]) -> TaskInput:
    if "prompt" in given:
        return GenerateInput(**given)
    if "question" in given:
        return AnswerInput(**given)
    if "source_lang" in given:
        return TranslateInput(**given)
    return ClassifyInput(given["text"], tuple(labels))
