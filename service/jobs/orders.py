"""What a caller may ask of a fine-tuning job, and what the trainer is told.

The body is OpenAI's. Beyond it, `method.modiste` takes the task, the packaged recipe, settings of
it by their dotted names, and whether a version that passes its gate is promoted.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from adapters.names import check_name
from adapters.prompt import Task
from adapters.registry import Version
from service.errors import BadRequest
from service.objects import Metadata

RECIPES = ("answer", "classify", "classify-many", "generate", "translate")
"""Packaged ones for jobs: none that runs what a file says, as `code` does."""
TASK_RECIPES = {
    "generate": "generate", "translate": "translate", "answer": "answer", "classify": "classify",
}  # fmt: skip

MOST_BYTES = 64 * 2**10
"""Of all settings together, as JSON."""
_MOST_TEXT, _MOST_PARTS = 20_000, 256
_MOST_NUMBER = 2**53
_NAME = re.compile(r"[a-z_]{1,32}(\.[a-z0-9_]{1,64}){1,2}")
_ALLOWED = (
    "data.columns.", "data.encoding", "data.format", "data.holdout_fraction", "data.labels",
    "data.max_examples", "data.max_test_examples", "data.on_broken", "data.redact",
    "data.source_lang", "data.split_by", "data.target_lang", "data.validation_fraction",
    "evaluation.bootstrap_samples", "evaluation.compare_live", "evaluation.max_examples",
    "evaluation.max_generated", "evaluation.max_new_tokens", "evaluation.valid_json",
    "gate.", "lora.", "prompt.", "training.",
)  # fmt: skip
"""Keys of a recipe that a caller may set: none that names files, runs code or reaches out."""
_NOT_ALLOWED = frozenset({"training.report_to", "training.seed", "training.method"})
_OWN_FIELDS = frozenset({"training.seed", "training.method", "name", "task", "base", "project"})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _auto_or(kind: type[int] | type[float], least: float, most: float) -> PlainValidator:
    """Takes `auto` or a number within bounds, and says so in one line."""

    def check(value: Any) -> Any:
        number = isinstance(value, int if kind is int else int | float)
        if value == "auto" or (number and not isinstance(value, bool) and least <= value <= most):
            return value
        raise ValueError(f"must be 'auto' or a number from {least:g} to {most:g}")

    name = "integer" if kind is int else "number"
    schema = {"anyOf": [{"const": "auto"}, {"type": name, "minimum": least, "maximum": most}]}
    return PlainValidator(check, json_schema_input_type=Annotated[Any, WithJsonSchema(schema)])


class Hyperparameters(_Body):
    """OpenAI's; `auto` is what the recipe says."""

    n_epochs: Annotated[int | str, _auto_or(int, 1, 50)] = "auto"
    batch_size: Annotated[int | str, _auto_or(int, 1, 256)] = "auto"
    learning_rate_multiplier: Annotated[float | str, _auto_or(float, 0.001, 100)] = "auto"


class Preferences(Hyperparameters):
    """Of DPO."""

    beta: Annotated[float | str, _auto_or(float, 0.001, 2)] = "auto"


class Supervised(_Body):
    """The method `supervised`."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(_Body):
    """The method `dpo`."""

    hyperparameters: Preferences = Preferences()


class Ours(_Body):
    """What OpenAI's API has no words for."""

    task: Task = "generate"
    recipe: Literal["answer", "classify", "classify-many", "generate", "translate"] | None = None
    settings: dict[str, Any] = Field(
        default={}, max_length=64, description="of the recipe, by dotted name"
    )
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    promote: bool = Field(default=False, description="promote the version when its gate passed")


class Method(_Body):
    """How is tuned."""

    type: Literal["supervised", "dpo"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    modiste: Ours = Ours()

    @model_validator(mode="after")
    def _one_kind(self) -> "Method":
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"type is {self.type}, and {other} is given")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        if self.type == "dpo":
            return Preferences() if self.dpo is None else self.dpo.hyperparameters
        return Hyperparameters() if self.supervised is None else self.supervised.hyperparameters

    def to_json(self) -> dict[str, Any]:
        """As the job tells it."""
        told: dict[str, Any] = {
            "type": self.type, self.type: {"hyperparameters": self.hyperparameters.model_dump()}
        }  # fmt: skip
        if "modiste" in self.model_fields_set:
            told["modiste"] = self.modiste.model_dump()
        return told


class NewJob(_Body):
    """The body of a request for a job."""

    model: str = Field(min_length=1, max_length=200)
    training_file: str = Field(min_length=1, max_length=200)
    validation_file: str | None = Field(default=None, max_length=200)
    suffix: str | None = Field(default=None, max_length=64)
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: list[Any] | None = None

    def chosen_method(self) -> Method:
        """The method, also where only the older `hyperparameters` say something.

        Raises:
            BadRequest: both are given, or what is not served is asked for.
        """
        if self.integrations:
            raise BadRequest(
                "integrations are not served", param="integrations",
                hint="leave them out; the job's events and result file have the figures",
            )  # fmt: skip
        if self.hyperparameters is None:
            return self.method or Method(type="supervised")
        if self.method is not None:
            raise BadRequest(
                "hyperparameters and method are both given", param="hyperparameters",
                hint="put them into method.supervised.hyperparameters",
            )  # fmt: skip
        return Method(
            type="supervised", supervised=Supervised(hyperparameters=self.hyperparameters)
        )

    def chosen_seed(self) -> int:
        return secrets.randbelow(2**31) if self.seed is None else self.seed


def checked_suffix(suffix: str | None) -> str | None:
    """Part of the fine-tuned model's name, and the adapter's; other characters become hyphens.

    Raises:
        InvalidName: nothing is left of it.
    """
    if not suffix:
        return None
    plain = re.sub(r"[^a-z0-9._-]+|[.]{2,}", "-", suffix.lower())
    return check_name(plain.strip("-._") or suffix, "suffix")


def settings_of(version: Version, method: Method) -> dict[str, Any]:
    """What a job does that goes on from a version: its recipe, from its weights.

    Raises:
        BadRequest: it was not made by a recipe, or the request asks for what can't go on.
    """
    config = version.manifest.training.get("config")
    if not isinstance(config, dict):
        raise BadRequest(
            f"model: {version.reference} has no recipe to go on with: it was imported or merged",
            param="model", hint="name a base model", code="no_recipe",
        )  # fmt: skip
    ours = method.modiste
    wrong = None
    if method.type == "dpo":
        wrong = "method.type", "preferences are learned from a base model"
    elif "task" in ours.model_fields_set and ours.task != version.manifest.task:
        wrong = "method.modiste.task", f"{version.reference} is for {version.manifest.task}"
    elif ours.rank is not None or any(name.startswith("lora") for name in ours.settings):
        wrong = "method.modiste", f"{version.reference} has its rank and modules already"
    if wrong is not None:
        param, problem = wrong
        raise BadRequest(
            f"{param}: {problem}", param=param, hint="leave it out, or name a base model"
        )
    kept = {
        name: value for name, value in _leaves(config)
        if value is not None and name not in _NOT_ALLOWED and _is_allowed(name)
    }  # fmt: skip
    return kept | {"training.start": "parent"}


def trainer_settings(method: Method, seed: int) -> dict[str, Any]:
    """The recipe's settings that a request decides, by dotted name.

    Raises:
        BadRequest: a setting is decided elsewhere, or is not a caller's to make.
    """
    ours, hyper = method.modiste, method.hyperparameters
    chosen = _checked(ours.settings)
    chosen |= {"task": ours.task, "training.seed": seed, "training.method": method.type}
    if ours.rank is not None:
        chosen |= {"lora.r": ours.rank, "lora.alpha": 2 * ours.rank}
    named = {
        "n_epochs": "training.epochs", "batch_size": "training.batch_size",
        "learning_rate_multiplier": "training.learning_rate_multiplier", "beta": "training.beta",
    }  # fmt: skip
    for field, setting in named.items():
        value = getattr(hyper, field, "auto")
        if value != "auto":
            chosen[setting] = value
    return chosen


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by the dotted names of their leaves.

    Raises:
        BadRequest: one is not a caller's to make, or has no value that a recipe takes.
    """
    leaves = dict(_leaves(settings))
    for name, value in leaves.items():
        shown = ascii(name)[1:-1][:80]
        if not _NAME.fullmatch(name) or name in _NOT_ALLOWED or not _is_allowed(name):
            own = name in _OWN_FIELDS or name.startswith(("data.train", "data.test", "data.valid"))
            raise BadRequest(
                f"method.modiste.settings: {shown} can't be set there",
                param=f"method.modiste.settings.{shown}",
                hint="files, model, suffix, method, task and seed have fields of their own" if own
                else "docs/api.md names the keys of a recipe that a job takes",
            )  # fmt: skip
        if (problem := _problem(value)) is not None:
            raise BadRequest(
                f"method.modiste.settings.{shown}: {problem}",
                param=f"method.modiste.settings.{shown}",
                hint="give a text, a finite number, true, false, null, or a list of such",
            )  # fmt: skip
    size = len(json.dumps(leaves))
    if size > MOST_BYTES:
        raise BadRequest(
            f"method.modiste.settings: {size} bytes are over {MOST_BYTES}",
            param="method.modiste.settings", hint="set fewer or shorter values",
        )  # fmt: skip
    return leaves


def _leaves(settings: dict[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and name.count(".") < 3:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _is_allowed(name: str) -> bool:
    return any(
        name.startswith(allowed) if allowed.endswith(".") else name == allowed
        for allowed in _ALLOWED
    )


def _problem(value: Any, depth: int = 0) -> str | None:
    """What is wrong with a value."""
    if isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        if depth > 1 or len(parts) > _MOST_PARTS:
            return f"it has more than {_MOST_PARTS} parts, or parts within parts"
        return next(filter(None, (_problem(part, depth + 1) for part in parts)), None)
    if isinstance(value, str):
        clean = value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
        if len(value) > _MOST_TEXT or "\0" in value or not clean:
            return f"the text is over {_MOST_TEXT} characters, or has some that no text has"
        return None
    if isinstance(value, int | float) and not (abs(value) <= _MOST_NUMBER):
        return "the number is not finite, or beyond 2^53"
    return None
