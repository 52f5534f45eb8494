"""What the task routes answer, as JSON."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from adapters.prompt import Task


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Usage(_Answer):
    """Tokens that the engine read and wrote for one item, all of its requests together."""

    prompt_tokens: int
    completion_tokens: int


class TotalUsage(Usage):
    total_tokens: int


class Notice(_Answer):
    """Something about an answer that its reader should know."""

    code: str
    message: str


class PlaceholderNotice(Notice):
    code: Literal["placeholder_changed"] = "placeholder_changed"
    missing: list[str]
    added: list[str]


class GlossaryNotice(Notice):
    code: Literal["glossary_not_honoured"] = "glossary_not_honoured"
    term: str
    translation: str


class GenerateResult(_Answer):
    index: int
    text: str
    finish_reason: str
    usage: Usage
    warnings: list[Notice] = Field(default_factory=list)


class TranslateResult(_Answer):
    index: int
    translation: str
    source_lang: str
    detected: bool
    finish_reason: str
    usage: Usage
    warnings: list[PlaceholderNotice | GlossaryNotice | Notice] = Field(default_factory=list)


class Evidence(_Answer):
    """Where a context says it: code points `start` to `end` of that context."""

    context: int
    start: int
    end: int
    text: str


class AnswerResult(_Answer):
    index: int
    answer: str
    answerable: bool | None = Field(description="null without a context")
    confidence: float = Field(description="geometric mean of the tokens' probabilities")
    evidence: list[Evidence]
    finish_reason: str
    usage: Usage


class LabelProbability(_Answer):
    label: str
    probability: float


class ClassifyResult(_Answer):
    index: int
    label: str
    probability: float
    labels: list[LabelProbability] = Field(description="all, the most probable first")
    usage: Usage


Result = GenerateResult | TranslateResult | AnswerResult | ClassifyResult
ResultT = TypeVar("ResultT", GenerateResult, TranslateResult, AnswerResult, ClassifyResult)


class TaskResponse(_Answer, Generic[ResultT]):
    id: str
    object: Task
    created: int
    model: str
    results: list[ResultT]
    usage: TotalUsage


def total(results: Sequence[ResultT]) -> TotalUsage:
    read = sum(result.usage.prompt_tokens for result in results)
    written = sum(result.usage.completion_tokens for result in results)
    return TotalUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
