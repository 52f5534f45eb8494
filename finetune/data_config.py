"""The recipe's section `data`: where examples come from, how they are read and parted."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from adapters.errors import AdapterError
from adapters.languages import parse_tag
from adapters.prompt import Task
from finetune.sensitive import KINDS, Kind

Format = Literal[
    "chat", "prompt_completion", "preference", "translation", "qa", "classification"
]  # fmt: skip
FORMATS: dict[Task, tuple[Format, ...]] = {
    "generate": ("chat", "prompt_completion", "preference"),
    "translate": ("translation",),
    "answer": ("qa",),
    "classify": ("classification",),
}
COLUMNS: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("input", "preferred_output", "non_preferred_output"),
    "translation": ("source", "target"),
    "qa": ("question", "context", "answer"),
    "classification": ("text", "label"),
}


def _tag(value: str) -> str:
    try:
        return parse_tag(value)
    except AdapterError as error:
        raise ValueError(str(error)) from error


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _labels(value: list[str]) -> list[str]:
    if len(set(value)) != len(value) or len(value) < 2 or not all(v.strip() for v in value):
        raise ValueError("labels are two or more texts, each once, none empty")
    return value


def _encoding(value: str) -> str:
    try:
        "a".encode(value)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{value!r} is no encoding of texts") from error
    return value


Files = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Language = Annotated[str, AfterValidator(_tag)]


class Data(BaseModel):
    """Where the examples come from. Relative paths are relative to the current folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Files = Field(
        description="a file, a glob, a URL, a folder that `datasets` saved, or a list of them"
    )
    validation: Files | None = Field(None, description="files whose loss is followed in training")
    test: Files | None = Field(None, description="held-out files; without them a part of train")
    format: Literal["auto"] | Format = Field("auto", description="auto: from task and columns")
    columns: dict[str, str] = Field({}, description="our name of a column: its name in the file")
    source_lang: Language | None = Field(None, description="BCP 47 tag, translate only")
    target_lang: Language | None = Field(None, description="BCP 47 tag, translate only")
    labels: Annotated[list[str], AfterValidator(_labels)] | None = Field(
        None, description="classify only; without them the labels of the training data"
    )
    encoding: Annotated[str, AfterValidator(_encoding)] | None = Field(
        None, description="of text files without a byte order mark, for example cp1252; else UTF-8"
    )
    split_by: str = Field(
        "example",
        min_length=1,
        description="what keeps examples on one side: example, file, or a column such as document",
    )
    holdout_fraction: float = Field(0.1, ge=0, le=0.5, description="share of train held out")
    validation_fraction: float = Field(
        0.0, ge=0, le=0.5, description="share of train whose loss is followed in training"
    )
    max_examples: int | None = Field(None, ge=1, description="training examples at most")
    max_test_examples: int = Field(200, ge=1, description="held-out examples at most")
    on_broken: Literal["error", "skip"] = Field("error", description="what a broken line does")
    redact: bool | list[Kind] = Field(
        False,
        description="replace personal data and secrets by placeholders: true, or a list of kinds",
    )

    @property
    def redacted(self) -> tuple[Kind, ...]:
        """The kinds that are replaced."""
        if isinstance(self.redact, bool):
            return KINDS if self.redact else ()
        return tuple(kind for kind in KINDS if kind in self.redact)
