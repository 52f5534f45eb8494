"""What the task routes accept, as JSON.

These types hold what a caller wrote. Each task's `check` makes the valid form of
them once; no later code checks again. `responses.py` has what the routes answer.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.errors import TooLarge

MAX_ITEMS = 256
MAX_CHARACTERS = 1_000_000
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 100
MAX_TERMS = 256
MAX_TERM_CHARACTERS = 256
MAX_LABELS = 256
MAX_LABEL_CHARACTERS = 256


def _text(value: object, item: str, *, blank_allowed: bool) -> str:
    """One text; `item` begins the message when it is one of a list."""
    if not isinstance(value, str):
        raise PydanticCustomError("text_type", "{item}must be text", {"item": item})
    if not blank_allowed and not value.strip():
        raise PydanticCustomError("text_blank", "{item}must not be blank", {"item": item})
    try:
        value.encode()
    except UnicodeEncodeError:
        # A lone surrogate, as "\ud800" in JSON: no tokenizer can read it.
        raise PydanticCustomError(
            "text_unicode", "{item}must be valid Unicode", {"item": item}
        ) from None
    return value


def _one_or_many(
    most: int, *, longest: int | None = None, blank_allowed: bool = False
) -> Callable[[object], tuple[str, ...]]:
    """A validator: one text, or a list of 1 to `most`, each 1 to `longest` characters."""

    def read(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            texts: tuple[str, ...] = (_text(value, "", blank_allowed=blank_allowed),)
        elif not isinstance(value, list | tuple):
            raise PydanticCustomError("text_type", "must be text or a list of texts")
        elif not 1 <= len(value) <= most:
            counts = {"most": most, "count": len(value)}
            raise PydanticCustomError("length", "must have 1 to {most} items, not {count}", counts)
        else:
            texts = tuple(
                _text(item, f"item {index} ", blank_allowed=blank_allowed)
                for index, item in enumerate(value)
            )
        if longest is not None and not all(1 <= len(text) <= longest for text in texts):
            limit = {"longest": longest}
            raise PydanticCustomError("length", "must have 1 to {longest} characters each", limit)
        return texts

    return read


def check_size(texts: Iterable[str], param: str) -> None:
    """Bound a request's text as a whole.

    Raises:
        TooLarge: more than a million characters together.
    """
    characters = sum(map(len, texts))
    if characters > MAX_CHARACTERS:
        raise TooLarge(
            f"{param} has {characters} characters, more than {MAX_CHARACTERS}",
            param=param,
            hint="send it in several requests",
        )


_TEXT_OR_LIST: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
}

Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_many(MAX_ITEMS)),
    WithJsonSchema(_TEXT_OR_LIST),
]
"""One text or a list; a single text becomes a tuple of one."""

Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_many(MAX_STOPS, longest=MAX_STOP_CHARACTERS, blank_allowed=True)),
    WithJsonSchema(_TEXT_OR_LIST),
]


def _label_list(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise PydanticCustomError("text_type", "must be a list of texts")
    return _one_or_many(MAX_LABELS, longest=MAX_LABEL_CHARACTERS)(value)


Labels = Annotated[
    tuple[str, ...],
    BeforeValidator(_label_list),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 2}),
]


def _glossary(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise PydanticCustomError("text_type", "must be an object of terms and translations")
    if len(value) > MAX_TERMS:
        raise PydanticCustomError("length", "must have at most {most} terms", {"most": MAX_TERMS})
    read = _one_or_many(2 * MAX_TERMS, longest=MAX_TERM_CHARACTERS)
    return {read(term)[0]: read(translation)[0] for term, translation in value.items()}


Glossary = Annotated[
    dict[str, str],
    BeforeValidator(_glossary),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]


class TaskRequest(BaseModel):
    """What the four requests share."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="base model, name, name@alias or name@7; left out: the task's live adapter",
    )
    timeout_s: float | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="longest wait for the engine, seconds; left out: as the server has it",
    )


class GenerateRequest(TaskRequest):
    prompt: Texts
    max_tokens: int = Field(default=256, ge=1, le=10_000_000)
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000, description="0: all tokens")
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Stops = ()
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    json_schema: dict[str, Any] | None = None
    stream: bool = False


class TranslateRequest(TaskRequest):
    text: Texts
    source_lang: str | None = Field(default=None, description="BCP 47; detected when left out")
    target_lang: str = Field(description="BCP 47")
    glossary: Glossary = Field(default_factory=dict)
    max_tokens: int | None = Field(
        default=None, ge=1, le=10_000_000, description="for each part of a long text"
    )
    stream: bool = False


class AnswerRequest(TaskRequest):
    question: Texts
    context: Texts | None = None
    max_tokens: int = Field(default=128, ge=1, le=10_000_000)
    stream: bool = False


class ClassifyRequest(TaskRequest):
    text: Texts
    labels: Labels | None = None
