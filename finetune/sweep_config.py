"""What a sweep is told: the recipe's section `sweep`, and options over it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from adapters.digests import digest_json
from adapters.gate import Slice
from adapters.prompt import Task
from finetune.config import Recipe, apply_overrides, check_recipe, mistakes_of, read_raw
from finetune.metric_names import LOWER_IS_BETTER, UNITS
from finetune.mistakes import Mistake, RecipeError
from finetune.options import Part
from finetune.sweep_space import Space, parse_space

_OF_TRAINING = ("loss", "reward_accuracy")
_EXAMPLE = "write --over training.learning_rate=1e-4..1e-3:log"


class Sweep(Part):
    """The section `sweep`, which other commands pass over."""

    over: dict[str, Any] = Field(description="what is varied: dotted key to a range or choices")
    trials: int = Field(20, ge=1, le=100_000, description="how many settings are tried")
    minutes: float | None = Field(
        None, gt=0, description="no trial begins once trials took so long in all"
    )
    prune: bool = Field(True, description="end trials early that are behind the others")
    seed: int = Field(0, ge=0, lt=2**31, description="of the settings that are proposed")


@dataclass(frozen=True, slots=True)
class Aim:
    """The figure by which trials are compared, on validation examples."""

    metric: str
    part: Slice
    by_training: bool
    """Measured as training does, since the evaluation has no such figure."""

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


def aim_of(recipe: Recipe) -> Aim:
    """The gate's metric, else `training.best_by`, else the task's first metric."""
    if recipe.gate is not None:
        return Aim(recipe.gate.metric, recipe.gate, by_training=False)
    if (chosen := recipe.training.best_by) is not None:
        return Aim(chosen, Slice(), by_training=chosen in _OF_TRAINING)
    return Aim(first_metric(recipe.task), Slice(), by_training=False)


def first_metric(task: Task) -> str:
    return next(iter(UNITS[task]))


def followed(recipe: Recipe) -> str:
    """The figure by which trials are compared in the course of training."""
    if recipe.training.best_by is not None:
        return recipe.training.best_by
    return "reward_accuracy" if recipe.training.method == "dpo" else "loss"


@dataclass(frozen=True, slots=True)
class Sought:
    """A sweep, whole and valid."""

    raw: dict[str, Any]
    """Parsed YAML of the recipe, whose settings are replaced by those of a trial."""
    recipe: Recipe
    sweep: Sweep
    space: Space

    def digest(self, data: Any, base: str) -> str:
        """Of all that decides which settings are proposed and how they do.

        Numbers of trials and minutes are not, so that they may be raised.

        Args:
            data: digests of the files.
            base: the base model's fingerprint.
        """
        return digest_json(
            {
                "recipe": self.recipe.model_dump(mode="json"), "space": self.space.told(),
                "seed": self.sweep.seed, "data": data, "base": base,
            }
        )  # fmt: skip


def read_sweep(
    reference: str, overrides: list[str], over: list[str], more: Mapping[str, Any]
) -> Sought:
    """Read a recipe with its section `sweep`.

    Args:
        overrides: `dotted.key=value`, as for a run.
        over: `dotted.key=RANGE` or `dotted.key=CHOICES`, beside or instead of the section's.
        more: other keys of the section; None leaves what it says.

    Raises:
        RecipeError: with every mistake of the recipe, or every mistake of the sweep.
        InvalidInput: no such recipe, or no YAML at all.
    """
    raw = read_raw(reference)
    mistakes = apply_overrides(raw, overrides)
    section = raw.pop("sweep", None)
    recipe = check_recipe(raw, reference, mistakes)
    section, mistakes = _section({} if section is None else section, over, more)
    section.setdefault("over", {})
    sweep = None
    try:
        sweep = Sweep.model_validate(section)
    except ValidationError as error:
        mistakes += mistakes_of(error, Sweep, "sweep")
    axes = section.get("over")
    if not axes and not mistakes:
        remedy = f"{_EXAMPLE}, or a section sweep"
        mistakes.append(Mistake("sweep.over", None, "says what is varied, and nothing is", remedy))
    prune = sweep.prune if sweep is not None else True
    space, found = parse_space(axes if isinstance(axes, dict) else {}, raw, prune=prune)
    mistakes += found
    if recipe.data.validation is None and not recipe.data.validation_fraction:
        remedy = "give data.validation, or for example --set data.validation_fraction=0.1"
        problem = "is what a sweep compares its trials on"
        mistakes.append(Mistake("data.validation", None, problem, remedy))
    if mistakes or sweep is None:
        raise RecipeError(f"the sweep over {reference}", mistakes)
    return Sought(raw, recipe, sweep, space)


def _section(
    given: Any, over: list[str], more: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Mistake]]:
    """The section with the options over it."""
    if not isinstance(given, dict):
        return {}, [Mistake("sweep", given, "holds no keys", "write sweep: {over: {…}}")]
    section = {**given, **{key: value for key, value in more.items() if value is not None}}
    mistakes = []
    axes = section.get("over")
    if over and (axes is None or isinstance(axes, dict)):
        section["over"] = axes = dict(axes or {})
        for text in over:
            key, equals, value = text.partition("=")
            if equals and key:
                axes[key] = value
            else:
                mistakes.append(Mistake("--over", text, "is neither range nor choices", _EXAMPLE))
    return section, mistakes
