"""Examples without personal data and secrets: each is replaced by a placeholder of its kind.

It is done before examples are told apart and parted, so that two which differ only in what is
replaced are duplicates, and stay on one side.
"""

import dataclasses
from typing import Any

from adapters.prompt import ClassifyInput, TaskInput
from finetune.chats import Chat
from finetune.sensitive import Kind, redact


def redact_example(
    given: TaskInput | Chat, references: tuple[str, ...], kinds: tuple[Kind, ...]
) -> tuple[TaskInput | Chat, tuple[str, ...]]:
    """An example's input and answers with placeholders; labels stay as they are."""
    if not kinds:
        return given, references
    if isinstance(given, ClassifyInput):
        return dataclasses.replace(given, text=redact(given.text, kinds)), references
    fields = {f.name: _redacted(getattr(given, f.name), kinds) for f in dataclasses.fields(given)}
    return dataclasses.replace(given, **fields), tuple(redact(text, kinds) for text in references)


def _redacted(value: Any, kinds: tuple[Kind, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, kinds)
    if isinstance(value, dict):
        return {key: _redacted(inner, kinds) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redacted(inner, kinds) for inner in value)
    return value
