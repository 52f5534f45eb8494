"""The manifest: everything that is known of a version, written beside its weights."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.digests import digest_json
from adapters.errors import AdapterError, InvalidManifest
from adapters.gate import Verdict
from adapters.languages import parse_tag
from adapters.names import check_name
from adapters.prompt import PromptTemplate, Task


def _name(value: str) -> str:
    try:
        return check_name(value)
    except AdapterError as error:
        raise ValueError(str(error)) from error


def _tag(value: str) -> str:
    try:
        return parse_tag(value)
    except AdapterError as error:
        raise ValueError(str(error)) from error


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, AfterValidator(_name)]
LanguageTag = Annotated[str, AfterValidator(_tag)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseRef(_Record):
    """Which base model a version was trained on, by content."""

    name: str
    config: Digest
    tokenizer: Digest
    chat_template: Digest
    weights: Digest
    dtype: str

    @property
    def fingerprint(self) -> str:
        """Digest of the content, whatever the base is called."""
        return digest_json(self.model_dump(exclude={"name"}))

    def differences(self, other: "BaseRef") -> list[str]:
        """The parts in which two bases differ."""
        parts = ("config", "tokenizer", "chat_template", "weights")
        return [part for part in parts if getattr(self, part) != getattr(other, part)]


def _optional(description: str | None = None, **more: Any) -> Any:
    """A field that is only written where it says something, so old manifests stay as they are."""
    return Field(None, description=description, exclude_if=lambda value: value is None, **more)


class Metric(_Record):
    """A figure on held-out examples with its 95 % bootstrap interval, and the base's.

    And that of the version that was live then, where it was measured.
    """

    value: float
    low: float
    high: float
    base_value: float
    base_low: float
    base_high: float
    live_value: float | None = _optional()
    live_low: float | None = _optional()
    live_high: float | None = _optional()
    unit: str = ""
    signature: str | None = None


class DatasetRef(_Record):
    """One split of the data by content."""

    digest: Digest
    examples: int = Field(ge=0)
    split: Literal["train", "validation", "test"]
    source: str


class SweepRef(_Record):
    """The sweep that chose a version's settings, by figures on validation examples."""

    digest: Digest = Field(description="of its recipe, data and space")
    metric: str = Field(description="by which trials were compared")
    trials: int = Field(ge=1, description="trials that were compared, pruned ones included")
    space: dict[str, str] = Field(description="what was varied: dotted key, range or choices")


class Draft(_Record):
    """What a trainer knows when it publishes; the registry adds the rest."""

    name: Name
    project: Name = "default"
    task: Task
    languages: list[LanguageTag] = Field(default_factory=list, description="source, then target")
    labels: list[str] = Field(default_factory=list)
    base: BaseRef
    peft: dict[str, Any] = Field(description="adapter_config.json as peft wrote it")
    prompt: PromptTemplate
    training: dict[str, Any] = Field(
        default_factory=dict, description="config, seed and package versions"
    )
    datasets: list[DatasetRef] = Field(default_factory=list)
    metrics: dict[str, Metric] = Field(default_factory=dict)
    probe: Digest
    live: str | None = _optional("version that it was compared with, as name@sha256:…")
    gate: Verdict | None = _optional("what came of its recipe's gate, where it stated one")
    sweep: SweepRef | None = _optional("the sweep that chose its settings, where one did")
    parents: list[str] = Field(default_factory=list, description="versions it was made from")
    checkpoint: int | None = _optional(
        "step of its run after which it was kept, where it is not the run's result", ge=1
    )

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        if self.prompt.task != self.task:
            raise ValueError(f"the prompt is for {self.prompt.task}, the adapter for {self.task}")
        if self.task == "translate" and len(self.languages) != 2:
            raise ValueError("languages of a translator are its source and its target")
        if self.task == "classify" and len(set(self.labels)) < 2:
            raise ValueError("labels of a classifier are two or more, each once")
        return self


class Manifest(Draft):
    """A published version; `digest` covers the fields that decide what it answers."""

    format: Literal[1] = 1
    version: int = Field(ge=1)
    digest: Digest
    created: datetime
    size: int = Field(ge=0, description="bytes of all files")
    files: dict[str, Digest]

    @property
    def rank(self) -> int:
        """The largest of its modules' ranks, which is what an engine must take."""
        return max(map(int, [self.peft["r"], *(self.peft.get("rank_pattern") or {}).values()]))


DECISIVE = ("adapter_model.safetensors", "adapter_config.json", "probe.json")
"""Files that decide a version's answers or prove them; logs and reports do not."""


def content_digest(draft: Draft, files: dict[str, str]) -> str:
    """The version's digest: weights, config, probe, prompt, task and base.

    Two publications with equal digest are the same version. A run's result is not the same as a
    checkpoint of equal content, which has another name and was not judged.
    """
    step = {} if draft.checkpoint is None else {"checkpoint": draft.checkpoint}
    return digest_json(
        step
        | {
            "files": {name: files[name] for name in DECISIVE},
            "task": draft.task,
            "languages": draft.languages,
            "labels": draft.labels,
            "prompt": draft.prompt.model_dump(),
            "base": draft.base.fingerprint,
        }
    )


def parse_manifest(text: str | bytes, source: str) -> Manifest:
    """Read a manifest.

    Raises:
        InvalidManifest: unreadable, unknown keys, or a digest that does not match.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise InvalidManifest(
            f"{source}: {where}: {first['msg']}",
            hint="the manifest was altered or comes from another release; publish it again",
        ) from error
    missing = [name for name in DECISIVE if name not in manifest.files]
    if missing or content_digest(manifest, manifest.files) != manifest.digest:
        raise InvalidManifest(
            f"{source}: the manifest's digest does not match its content",
            hint="the manifest was altered; publish the version again",
        )
    return manifest
