"""From records to examples: each task's forms of data, and what makes a record unusable."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adapters.prompt import (
    AnswerInput,
    ClassifyInput,
    GenerateInput,
    TaskInput,
    TranslateInput,
)
from finetune.config import FORMATS, Data, Format, Recipe
from finetune.sources import BadLine, Broken, Reading, Record, check_text

ROLES = ("system", "user", "assistant")
_PREFERRED, _REJECTED = "preferred_output", "non_preferred_output"


@dataclass(frozen=True, slots=True)
class Chat:
    """A whole conversation; the last assistant message is what is asked for when testing."""

    messages: tuple[dict[str, Any], ...]

    @property
    def last(self) -> int:
        """Position of the last assistant message."""
        return max(i for i, m in enumerate(self.messages) if m["role"] == "assistant")


@dataclass(frozen=True, slots=True)
class Preference(Chat):
    """A conversation whose last message was preferred to another answer."""

    rejected: str


@dataclass(frozen=True, slots=True)
class Example:
    """One input with the answers that count as right; the first one is learned."""

    input: TaskInput | Chat
    references: tuple[str, ...]
    origin: str
    key: str
    """Hex digest of the input, case and white space aside."""


def examples_of(reading: Reading, recipe: Recipe, labels: list[str]) -> Iterator[Example]:
    """Examples of the records; a record that makes none is added to `reading.broken`."""
    for record in reading.records:
        origin = f"{record.path}:{record.line}"
        try:
            given, references = _parse(record, recipe, labels)
        except BadLine as error:
            reading.broken.append(Broken(record.path, record.line, str(error)))
            continue
        yield Example(given, references, origin, key_of(given))


def key_of(given: TaskInput | Chat) -> str:
    """Hex digest of an input; case and white space make no difference."""
    if isinstance(given, Chat):
        parts = [text for m in given.messages[: given.last] for text in (m["role"], m["content"])]
    else:
        fields = dataclasses.asdict(given)
        fields.pop("labels", None)
        parts = [value for value in fields.values() if value is not None]
    plain = [" ".join(part.casefold().split()) for part in parts]
    return hashlib.sha256(json.dumps([len(plain), *plain]).encode()).hexdigest()


def label_set(recipe: Recipe, reading: Reading) -> list[str]:
    """The classifier's labels: the recipe's, else those of the training data."""
    if recipe.task != "classify":
        return []
    if recipe.data.labels is not None:
        return recipe.data.labels
    column = recipe.data.columns.get("label", "label")
    values = {record.fields.get(column) for record in reading.records}
    return sorted({value.strip() for value in values if isinstance(value, str) and value.strip()})


def _parse(
    record: Record, recipe: Recipe, labels: list[str]
) -> tuple[TaskInput | Chat, tuple[str, ...]]:
    """The input and the right answers of one record. Raises BadLine."""
    fields, data = record.fields, recipe.data
    match _format(recipe, fields):
        case "chat":
            return _chat(fields.get(data.columns.get("messages", "messages")))
        case "preference":
            return _preference(fields, data)
        case "prompt_completion":
            return GenerateInput(_text(fields, data, "prompt")), (
                _text(fields, data, "completion"),
            )
        case "translation":
            return _translation(fields, data)
        case "qa":
            return _question(fields, data, recipe.template.unanswerable)
        case "classification":
            label = _text(fields, data, "label").strip()
            if label not in labels:
                raise BadLine(f"the label {label!r} is none of {', '.join(labels)[:200]}")
            return ClassifyInput(_text(fields, data, "text"), tuple(labels)), (label,)


def _format(recipe: Recipe, fields: dict[str, Any]) -> Format:
    if recipe.data.format != "auto":
        return recipe.data.format
    if recipe.training.method == "dpo" or _PREFERRED in fields:
        return "preference"
    if recipe.task == "generate":
        chat = recipe.data.columns.get("messages", "messages") in fields
        return "chat" if chat else "prompt_completion"
    return FORMATS[recipe.task][0]


def _text(fields: dict[str, Any], data: Data, name: str, usual: str | None = None) -> str:
    """A text that must be there and not empty: in the mapped column, else the usual one."""
    column = data.columns.get(name, name if usual is None else usual)
    if column in fields:
        value = fields[column]
        if not isinstance(value, str):
            raise BadLine(f"{column!r} is not text")
        if not value.strip():
            raise BadLine(f"{column!r} is empty")
        return check_text(value)
    there = ", ".join(map(str, fields)) or "nothing"
    raise BadLine(f"{column!r} is missing (there: {there[:200]})")


def _translation(fields: dict[str, Any], data: Data) -> tuple[TaskInput, tuple[str, ...]]:
    source_lang, target_lang = str(data.source_lang), str(data.target_lang)
    pair = fields.get("translation")  # {"translation": {"en": …, "fr": …}} is a common form
    fields = pair if isinstance(pair, dict) else fields
    # columns named by the two tags win: `source` may then say where a text comes from
    tags = {source_lang, target_lang} <= fields.keys()
    source = _text(fields, data, "source", source_lang if tags else "source")
    target = _text(fields, data, "target", target_lang if tags else "target")
    return TranslateInput(source, source_lang, target_lang), (target,)


def _question(
    fields: dict[str, Any], data: Data, unanswerable: str
) -> tuple[TaskInput, tuple[str, ...]]:
    """A question as SQuAD writes it, or with one plain answer."""
    question = _text(fields, data, "question")
    column = data.columns.get("context", "context")
    context = None if fields.get(column) in (None, "") else _text(fields, data, "context")
    given = AnswerInput(question, context)
    answers = fields.get("answers") if "answer" not in data.columns else None
    if answers is None:
        if fields.get("is_impossible") is True:
            return given, (unanswerable,)
        return given, (_text(fields, data, "answer"),)
    if isinstance(answers, dict):
        answers = answers.get("text")
    if not isinstance(answers, list):
        raise BadLine("'answers' is no list of answers")
    texts = [a.get("text") if isinstance(a, dict) else a for a in answers]
    known = [check_text(text) for text in texts if isinstance(text, str) and text.strip()]
    if len(known) < len(texts):
        raise BadLine("'answers' has one that is empty or no text")
    return given, tuple(dict.fromkeys(known)) or (unanswerable,)


def _chat(messages: Any) -> tuple[Chat, tuple[str, ...]]:
    """A conversation as OpenAI's fine-tuning files have it, text only."""
    if not isinstance(messages, list) or not messages:
        raise BadLine("'messages' is no list of messages")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadLine(f"message {position} has no role among {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise BadLine(f"message {position} has no text as its content")
        check_text(content)
        if message.get("weight", 1) not in (0, 1):
            raise BadLine(f"message {position} has a weight other than 0 and 1")
    if not any(m["role"] == "assistant" for m in messages):
        raise BadLine("no message of the assistant")
    kept = tuple({k: m[k] for k in ("role", "content", "weight") if k in m} for m in messages)
    chat = Chat(kept)
    if chat.last == 0:
        raise BadLine("nothing stands before the assistant's message")
    return chat, (kept[chat.last]["content"],)


def _preference(fields: dict[str, Any], data: Data) -> tuple[Preference, tuple[str, ...]]:
    """A preference as OpenAI's fine-tuning files have it: one input, a better and a worse answer.

    Only the two answers are learned from, never what the assistant said before.
    """
    names = {name: data.columns.get(name, name) for name in ("input", _PREFERRED, _REJECTED)}
    missing = [column for column in names.values() if column not in fields]
    if missing:
        there = ", ".join(map(str, fields)) or "nothing"
        raise BadLine(f"{missing[0]!r} is missing (there: {there[:200]})")
    given = fields[names["input"]]
    messages = given.get("messages") if isinstance(given, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadLine(f"{names['input']!r} has no list of messages")
    if given.get("tools"):
        raise BadLine("tools are not supported in preferences")
    said = [_only_answer(fields[names[name]], names[name]) for name in (_PREFERRED, _REJECTED)]
    if said[0] == said[1]:
        raise BadLine("the preferred and the other answer are the same")
    chat, references = _chat([*messages, {"role": "assistant", "content": said[0]}])
    earlier = ({**m, "weight": 0} if m["role"] == "assistant" else m for m in chat.messages[:-1])
    return Preference((*earlier, chat.messages[-1]), said[1]), references


def _only_answer(output: Any, column: str) -> str:
    """The text of an output, which is a list of one message of the assistant."""
    message = output[0] if isinstance(output, list) and len(output) == 1 else None
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise BadLine(f"{column!r} is no list of one message of the assistant")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise BadLine(f"{column!r} has no text as its content")
    return check_text(text)
