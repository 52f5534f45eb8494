"""What a caller may ask of a fine-tuning job, and what the trainer is told.

The body is OpenAI's. Beyond it, `method.modiste` takes the task, the packaged recipe, settings of
it by their dotted names, and whether a version that passes its gate is promoted.
"""

import secrets
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
from service.errors import BadRequest
from service.objects import Metadata

Simple = str | int | float | bool | None
TASK_RECIPES = {
    "generate": "generate", "translate": "translate", "answer": "answer", "classify": "classify",
}  # fmt: skip
_OURS = ("data.train", "data.test", "name", "project", "task", "base", "parent", "training.seed")
"""Settings that follow from the request's own fields."""
_NOT_SET = ("evaluation.asserts", "training.report_to")
"""Settings that run code or reach out where the worker runs."""


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
    recipe: str | None = Field(default=None, pattern="^[a-z][a-z-]{0,63}$")
    settings: dict[str, Simple | list[Simple] | dict[str, Simple]] = Field(
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
    """Part of the fine-tuned model's name, and the adapter's.

    Raises:
        InvalidName: other characters than a name has.
    """
    return None if not suffix else check_name(suffix, "suffix")


def trainer_settings(method: Method, seed: int) -> dict[str, Any]:
    """The recipe's settings that a request decides, by dotted name.

    Raises:
        BadRequest: a setting is decided elsewhere, or is not a caller's to make.
    """
    ours, hyper = method.modiste, method.hyperparameters
    for name in ours.settings:
        reserved = name in _OURS or (name.split(".")[0] == "data" and name.split(".")[1:2] in (
            ["train"], ["test"], ["validation"]
        ))  # fmt: skip
        if reserved or name in _NOT_SET:
            raise BadRequest(
                f"method.modiste.settings: {name[:60]} can't be set there",
                param=f"method.modiste.settings.{name[:60]}",
                hint="files, model, suffix, task and seed have fields of their own"
                if reserved else "it is the operator's",
            )  # fmt: skip
    chosen: dict[str, Any] = dict(ours.settings)
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
