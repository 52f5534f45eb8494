"""What a sweep varies: a range or choices for each dotted key, checked against the recipe.

training.learning_rate: 1e-4..1e-3:log    from .. to, in logarithms
lora.r: 8..64                             whole numbers, since the key takes those
lora.alpha: [16, 32]                      choices; as a text: 16,32
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args

import yaml

from finetune.config import Recipe, field_at, parse_yaml, with_settings
from finetune.mistakes import Mistake, RecipeError

_SECTIONS = ("lora", "training", "prompt")
_NOT_VARIED = {
    "training.max_length": "it cuts the examples that figures are measured on",
    "training.best_by": "it decides which figures are compared in the course of training",
    "training.report_to": "it changes nothing about the adapter",
}
_LOSES_COMPARISON = ("training.method", "training.beta")
"""Losses, and DPO's rewards, mean something else when these differ."""
_DIGITS = 3
"""Significant ones of a number within a range: enough for any setting, and readable."""


class Suggesting(Protocol):
    """What is needed of Optuna's Trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: list[str]) -> Any: ...


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Suggesting, key: str) -> float:
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        value = trial.suggest_float(key, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that the recipe must take for it to take all of them."""
        return (self.low, self.high)

    def known_as(self, value: Any) -> Any:
        """The value as Optuna keeps it; None: it is not in the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and self.low <= value <= self.high else None

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (":log" if self.log else "")


@dataclass(frozen=True, slots=True)
class Choices:
    """Some values of any kind, kept as JSON."""

    values: tuple[str, ...]

    def suggest(self, trial: Suggesting, key: str) -> Any:
        return json.loads(trial.suggest_categorical(key, list(self.values)))

    @property
    def ends(self) -> tuple[Any, ...]:
        return tuple(map(json.loads, self.values))

    def known_as(self, value: Any) -> str | None:
        for text in self.values:
            choice = json.loads(text)
            if choice == value or str(choice).lower() == str(value).lower():  # YAML's true
                return text
        return None

    def __str__(self) -> str:
        return ", ".join(self.values)


@dataclass(frozen=True, slots=True)
class Space:
    """What is varied, by dotted key, in the order in which it was given."""

    axes: Mapping[str, Range | Choices]

    def suggest(self, trial: Suggesting) -> dict[str, Any]:
        """The settings of a trial, by dotted key."""
        return {key: axis.suggest(trial, key) for key, axis in self.axes.items()}

    def own(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's own values as Optuna keeps them; None: the space lacks them."""
        values = recipe.model_dump(mode="json")
        found = {k: axis.known_as(_value_at(values, k)) for k, axis in self.axes.items()}
        return None if None in found.values() else found

    def varies(self, begins: tuple[str, ...]) -> bool:
        """Whether a key that begins so is among what is varied."""
        return any(key.startswith(begins) for key in self.axes)

    @property
    def combinations(self) -> int | None:
        """How many there are; None: a range is among the axes."""
        axes = self.axes.values()
        if any(isinstance(axis, Range) for axis in axes):
            return None
        return math.prod(len(axis.ends) for axis in axes)

    def every(self) -> Iterator[dict[str, str]]:
        """Each combination of choices, as Optuna keeps them."""
        choices = [axis.values for axis in self.axes.values() if isinstance(axis, Choices)]
        for values in itertools.product(*choices):
            yield dict(zip(self.axes, values, strict=True))

    def told(self) -> dict[str, str]:
        """What is varied, as people write it."""
        return {key: str(axis) for key, axis in self.axes.items()}


def parse_space(
    over: Mapping[str, Any], raw: dict[str, Any], *, prune: bool
) -> tuple[Space, list[Mistake]]:
    """The axes that are fine, and what is wrong with the others.

    Args:
        over: dotted key to a range as text, a list of choices, or choices as text.
        raw: parsed YAML of a recipe that is right by itself.
        prune: whether trials are compared in the course of training.
    """
    axes: dict[str, Range | Choices] = {}
    mistakes: list[Mistake] = []
    for key, given in over.items():
        axis = _misplaced(key, given, prune=prune) or _parse(key, given)
        if isinstance(axis, Mistake):
            mistakes.append(axis)
        elif found := _not_taken(key, given, axis, raw):
            mistakes += found
        else:
            axes[key] = axis
    return Space(axes), mistakes


def _misplaced(key: str, given: Any, *, prune: bool) -> Mistake | None:
    section, dot, _ = key.partition(".")
    if section not in _SECTIONS or not dot or not all(key.split(".")):
        remedy = f"keys of {', '.join(_SECTIONS)} are varied, such as training.learning_rate"
        return Mistake(key, given, "can't be varied by a sweep", remedy)
    if key in _NOT_VARIED:
        return Mistake(key, given, f"can't be varied: {_NOT_VARIED[key]}", "set it in the recipe")
    if prune and key in _LOSES_COMPARISON:
        problem = "changes what the loss means, by which trials are pruned"
        return Mistake(key, given, problem, "switch pruning off: --no-prune")
    return None


def _parse(key: str, given: Any) -> Range | Choices | Mistake:
    if isinstance(given, str) and ".." in given:
        return _parse_range(key, given)
    values = given
    if isinstance(given, str):
        try:
            values = parse_yaml(f"[{given}]")
        except yaml.YAMLError:
            values = None
    if not isinstance(values, list):
        remedy = "write choices as 8,16,32 and a range as 1e-4..1e-3, or 1e-4..1e-3:log"
        return Mistake(key, given, "is neither a range nor a list of choices", remedy)
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    if len(set(texts)) != len(texts):
        return Mistake(key, given, "has a choice twice", "give each once")
    if len(texts) < 2:
        return Mistake(key, given, "is no choice", "give two values or more, or set it with --set")
    return Choices(tuple(texts))


def _parse_range(key: str, given: str) -> Range | Mistake:
    ends, _, scale = given.partition(":")
    try:
        low, high = (float(end) for end in ends.split("..", 1))
    except ValueError:
        return Mistake(key, given, "is no range of numbers", "write it as 1e-4..1e-3")
    if scale not in ("", "log") or (":" in given and not scale):
        return Mistake(key, given, f"{scale!r} is no scale", "end it with :log or with nothing")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return Mistake(key, given, "is an empty range", "write the smaller number first")
    if scale and low <= 0:
        return Mistake(key, given, "has no logarithm at its lower end", "begin it above 0")
    return _typed_range(key, given, Range(low, high, bool(scale)))


def _typed_range(key: str, given: str, found: Range) -> Range | Mistake:
    """The range with whole ends where the key takes whole numbers alone."""
    field, _ = field_at(key.split("."))
    if field is None:
        return found  # told as an unknown key
    kinds = _numbers_in(field.annotation)
    if not kinds:
        return Mistake(key, given, "is no number, so it has no range", "list values: one,two")
    if float in kinds:
        return found
    low, high = float(found.low), float(found.high)
    if not (low.is_integer() and high.is_integer()):
        return Mistake(key, given, "is of whole numbers alone", "give whole ends")
    return Range(int(low), int(high), found.log, whole=True)


def _numbers_in(annotation: Any) -> set[type]:
    if annotation in (int, float):
        return {annotation}
    return {kind for part in get_args(annotation) for kind in _numbers_in(part)}


def _not_taken(key: str, given: Any, axis: Range | Choices, raw: dict[str, Any]) -> list[Mistake]:
    """What the recipe says to the axis's values, each of them alone."""
    field, _ = field_at(key.split("."))
    found: list[Mistake] = []
    for value in axis.ends if field is not None else axis.ends[:1]:
        try:
            with_settings(raw, {key: value}, key)
        except RecipeError as error:
            found += [mistake for mistake in error.mistakes if mistake not in found]
    # of a key that is none, no value is wrong more than the others
    return found if field is not None else [replace(mistake, value=given) for mistake in found]


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
