"""From records to examples: each task's forms of data, and what makes a record unusable."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapters.errors import AdapterError
from adapters.languages import parse_tag
from adapters.prompt import (
    AnswerInput,
    ClassifyInput,
    GenerateInput,
    TaskInput,
    TranslateInput,
)
from finetune.chats import Chat, parse_chat
from finetune.config import Recipe
from finetune.data_config import FORMATS, Data, Format
from finetune.preferences import PREFERRED, parse_preference
from finetune.reading import BadLine, Broken, LeftOut, Reading, Record, check_text
from finetune.redaction import redact_example
from finetune.sensitive import redact


@dataclass(frozen=True, slots=True)
class Example:
    """One input with the answers that count as right; the first one is learned."""

    input: TaskInput | Chat
    references: tuple[str, ...]
    """For a chat the content of the message that is asked for."""
    origin: str
    key: str
    """Hex digest of the input, case and white space aside."""
    group: str | None = None
    """Hex digest of what keeps examples on one side, if not the input."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Values of the columns that the evaluation needs."""

    @property
    def side(self) -> str:
        """Hex digest that decides between train and held-out."""
        return self.key if self.group is None else self.group


def examples_of(
    records: Iterable[Record],
    reading: Reading,
    recipe: Recipe,
    labels: list[str],
    *,
    grouped: bool = False,
) -> Iterator[Example]:
    """Examples of the records, one by one; `reading` notes records that make none.

    Args:
        grouped: they will be parted, by what the recipe says.
    """
    for record in records:
        try:
            given, references = _parse(record, recipe, labels)
            given, references = redact_example(given, references, recipe.data.redacted)
            group = _group(record, recipe.data.split_by) if grouped else None
        except LeftOut as error:
            reading.skipped[str(error)] += 1
        except BadLine as error:
            where = record.path, record.line
            reading.note(Broken(*where, str(error), record.part, error.code))
        else:
            yield Example(
                given, references, record.origin, key_of(given), group, _columns(record, recipe)
            )


def _columns(record: Record, recipe: Recipe) -> dict[str, str]:
    """Values as text, what is no text as JSON writes it; redacted as the example is."""
    wanted = recipe.kept_columns & record.fields.keys()
    values = {name: record.fields[name] for name in sorted(wanted)}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
    return {name: redact(text, recipe.data.redacted) for name, text in texts.items()}


def _group(record: Record, split_by: str) -> str | None:
    """Digest of the value that keeps a record on one side with its like."""
    if split_by == "example":
        return None
    value = record.fields.get(split_by)
    if value is None and split_by == "file":
        value = Path(record.path).name
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        there = ", ".join(map(str, record.fields))
        raise BadLine(
            f"{split_by!r}, by which data.split_by keeps examples together, is missing or "
            f"no text (there: {there[:200]})"
        )
    return _digest(["group", check_text(str(value))])


def key_of(given: TaskInput | Chat) -> str:
    """Hex digest of an input; case and white space make no difference."""
    if isinstance(given, Chat):
        parts = given.key_parts()
    else:
        fields = dataclasses.asdict(given)
        fields.pop("labels", None)
        parts = [value for value in fields.values() if value is not None]
    return _digest(parts)


def _digest(parts: list[str]) -> str:
    plain = [" ".join(part.casefold().split()) for part in parts]
    return hashlib.sha256(json.dumps([len(plain), *plain]).encode()).hexdigest()


def label_set(recipe: Recipe, records: Iterable[Record]) -> list[str]:
    """The classifier's labels: the recipe's, else those of the training data."""
    if recipe.task != "classify":
        return []
    if recipe.data.labels is not None:
        return recipe.data.labels
    column = recipe.data.columns.get("label", "label")
    values = {
        value.strip() for record in records if isinstance(value := record.fields.get(column), str)
    }
    return sorted(values - {""})


def _parse(
    record: Record, recipe: Recipe, labels: list[str]
) -> tuple[TaskInput | Chat, tuple[str, ...]]:
    """The input and the right answers of one record. Raises BadLine."""
    fields, data = record.fields, recipe.data
    match _format(recipe, fields):
        case "chat":
            chat = parse_chat(fields, data.columns.get("messages", "messages"))
            return chat, (chat.messages[chat.last]["content"],)
        case "preference":
            pair = parse_preference(fields, data.columns)
            return pair, (pair.messages[-1]["content"],)
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
                known = ", ".join(labels)[:200]
                raise BadLine(f"the label {label!r} is none of {known}", "unknown_label")
            return ClassifyInput(_text(fields, data, "text"), tuple(labels)), (label,)


def _format(recipe: Recipe, fields: dict[str, Any]) -> Format:
    if recipe.data.format != "auto":
        return recipe.data.format
    if recipe.training.method == "dpo" or PREFERRED in fields:
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
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BadLine(f"{column!r} is empty", "empty_field")
        if not isinstance(value, str):
            raise BadLine(f"{column!r} is not text but {str(value)[:40]}")
        try:
            return check_text(value)
        except BadLine as error:
            raise BadLine(f"{column!r} {error}", error.code) from error
    there = ", ".join(map(str, fields)) or "nothing"
    raise BadLine(
        f"{column!r} is missing (there: {there[:200]}; data.columns.{name} names another column)",
        "missing_field",
    )


def _translation(fields: dict[str, Any], data: Data) -> tuple[TaskInput, tuple[str, ...]]:
    source_lang, target_lang = str(data.source_lang), str(data.target_lang)
    pair = fields.get("translation")  # {"translation": {"en": …, "fr": …}} is a common form
    nested = isinstance(pair, dict)
    if isinstance(pair, dict):
        fields = pair
    # columns named by the two tags win: `source` may then say where a text comes from
    source_tag, target_tag = _tagged(source_lang, fields), _tagged(target_lang, fields)
    if nested and not data.columns and not {"source", "target"} <= fields.keys():
        for lang, tag in ((source_lang, source_tag), (target_lang, target_tag)):
            if tag is None or fields[tag] in (None, ""):
                raise LeftOut(f"translations without {lang}")  # others may have it
    if source_tag is None or target_tag is None:
        source_tag, target_tag = "source", "target"
    source = _text(fields, data, "source", source_tag)
    target = _text(fields, data, "target", target_tag)
    return TranslateInput(source, source_lang, target_lang), (target,)


def _tagged(lang: str, fields: dict[str, Any]) -> str | None:
    """The field named by a language tag; `en` also finds `en-US`, `en_us` and the like."""
    if lang in fields:
        return lang
    near = None
    for name in fields:
        tag = _tag(name)
        if tag == lang:
            return name
        if near is None and tag is not None and tag.startswith(f"{lang}-"):
            near = name
    return near


@lru_cache(maxsize=1024)
def _tag(name: str) -> str | None:
    if len(name) > 20:
        return None
    try:
        return parse_tag(name.replace("_", "-"))
    except AdapterError:
        return None


def _question(
    fields: dict[str, Any], data: Data, unanswerable: str
) -> tuple[TaskInput, tuple[str, ...]]:
    """A question as SQuAD writes it, or with one plain answer."""
    question = _text(fields, data, "question")
    column = data.columns.get("context", "context")
    context = None if fields.get(column) in (None, "") else _text(fields, data, "context")
    given = AnswerInput(question, context)
    impossible = _truth(fields.get("is_impossible"))
    answers = fields.get("answers") if "answer" not in data.columns else None
    if answers is None:
        if impossible:
            return given, (unanswerable,)
        return given, (_text(fields, data, "answer"),)
    if isinstance(answers, dict):
        answers = answers.get("text")
    if not isinstance(answers, list):
        raise BadLine("'answers' is no list of answers")
    texts = [a.get("text") if isinstance(a, dict) else a for a in answers]
    known = [check_text(text) for text in texts if isinstance(text, str) and text.strip()]
    if len(known) < len(texts):
        raise BadLine("'answers' has one that is empty or no text", "empty_field")
    if impossible is not None and impossible == bool(known):
        said = "has answers, yet" if known else "has no answers, yet"
        raise BadLine(f"{said} 'is_impossible' is {str(impossible).lower()}")
    return given, tuple(dict.fromkeys(known)) or (unanswerable,)


def _truth(value: Any) -> bool | None:
    """SQuAD's `is_impossible`, which tables write as text; None where nothing is said."""
    if value is None or isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False, "": None}
    if str(value).strip().lower() not in known:
        raise BadLine(f"'is_impossible' is neither true nor false but {str(value)[:40]!r}")
    return known[str(value).strip().lower()]
