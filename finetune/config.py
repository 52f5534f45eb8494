"""The recipe: everything that one fine-tuning run is told, checked before anything runs.

A recipe is YAML. Every mistake in it is reported at once, each with its dotted key, its
value and what to do about it.
"""

import copy
import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
)

from adapters.digests import PREFIX, digest_json
from adapters.errors import AdapterError, InvalidInput
from adapters.gate import Gate
from adapters.names import check_name
from adapters.prompt import PromptTemplate, Task, changed_prompt
from finetune.data_config import Data
from finetune.metric_names import check_pattern
from finetune.mistakes import Mistake, RecipeError, contradictions
from finetune.options import Lora, Training
from finetune.options import Part as _Part


def _name(value: str, param: str = "name") -> str:
    try:
        return check_name(value, param)
    except AdapterError as error:
        raise ValueError(str(error)) from error


class Evaluation(_Part):
    """What is measured on held-out examples, for the base, the adapter and the live version."""

    max_examples: int = Field(200, ge=1, description="held-out examples at most")
    max_new_tokens: int = Field(128, ge=1, le=4096, description="of one generated answer")
    bootstrap_samples: int = Field(1000, ge=10, le=100_000, description="resamples for intervals")
    compare_live: bool = Field(True, description="measure the live version too, where there is one")
    on_server: bool = Field(
        False, description="ask a server that is started for it instead of the trainer's model"
    )
    max_generated: int = Field(
        50, ge=1, description="generate only: answers generated for rouge_l and what follows"
    )
    valid_json: bool = Field(False, description="generate only: measure whether answers are JSON")
    pattern: Annotated[str, AfterValidator(check_pattern)] | None = Field(
        None, description="generate only: a regular expression that whole answers shall match"
    )
    asserts: str | None = Field(
        None,
        description="generate only: column with Python asserts that an answer's code must pass",
    )


class Recipe(_Part):
    """One run, whole and valid."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="the adapter's name")
    task: Task
    project: Annotated[str, AfterValidator(partial(_name, param="project"))] = Field(
        "default", description="whose keys may use the adapter"
    )
    base: str | None = Field(None, description="name of a base model; without it the only one")
    prompt: dict[Literal["system", "user", "user_without_context", "unanswerable"], str | None] = (
        Field({}, description="replaces parts of the task's prompt")
    )
    data: Data
    lora: Lora = Lora()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    gate: Gate | None = Field(None, description="what the version must show to be promoted")
    parent: str | None = Field(
        None,
        pattern=r"^[^@]+@sha256:[0-9a-f]{64}$",
        description="the version whose recipe this repeats, or from whose weights it starts",
    )

    @property
    def template(self) -> PromptTemplate:
        """The task's prompt with this recipe's changes."""
        return changed_prompt(self.task, self.prompt)

    @property
    def kept_columns(self) -> set[str]:
        """Columns of the data that the evaluation needs beside inputs and answers."""
        gated = set() if self.gate is None else self.gate.columns
        asserts = self.evaluation.asserts
        return gated if asserts is None else gated | {asserts}

    @property
    def digest(self) -> str:
        """Hex digest of everything in the recipe."""
        return digest_json(self.model_dump(mode="json")).removeprefix(PREFIX)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `no` is Norwegian, 2e-4 a number, a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """Parse YAML without surprises; texts like `no` and `on` stay texts."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read_recipe(reference: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe from a file or, by bare name, from the packaged ones.

    Args:
        overrides: `dotted.key=value`, each value YAML.

    Raises:
        RecipeError: with every mistake found.
        InvalidInput: no such recipe, or no YAML at all.
    """
    raw = read_raw(reference)
    mistakes = apply_overrides(raw, overrides or [])
    raw.pop("sweep", None)  # says what `finetune sweep` varies
    return check_recipe(raw, reference, mistakes)


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> list[Mistake]:
    """Set `dotted.key=value` in parsed YAML; returns those that can't be."""
    return [found for text in overrides if (found := _override(raw, text)) is not None]


def check_recipe(
    raw: dict[str, Any], source: str = "recipe", mistakes: list[Mistake] | None = None
) -> Recipe:
    """Make a recipe of parsed YAML.

    Raises:
        RecipeError: with every mistake found, those given included.
    """
    found = list(mistakes or [])
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        found += mistakes_of(error)
    found += contradictions(raw)
    if found or recipe is None:
        raise RecipeError(source, found)
    return recipe


def with_settings(raw: dict[str, Any], settings: Mapping[str, Any], source: str) -> Recipe:
    """A recipe with some settings changed.

    Args:
        raw: the recipe's parsed YAML; it stays as it is.

    Raises:
        RecipeError: the recipe does not take them.
    """
    changed = copy.deepcopy(raw)
    placed = [place_value(changed, key, value) for key, value in settings.items()]
    return check_recipe(changed, source, [mistake for mistake in placed if mistake is not None])


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("finetune").joinpath("recipes")
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def read_raw(reference: str) -> dict[str, Any]:
    """A recipe's parsed YAML, unchecked, its section `sweep` included.

    Raises:
        InvalidInput: no such recipe, or no mapping in YAML.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif reference in packaged_recipes():
        text = resources.files("finetune").joinpath("recipes", f"{reference}.yaml").read_text()
    else:
        raise InvalidInput(
            f"there is no recipe {reference!r}",
            hint=f"give a YAML file or one of {', '.join(packaged_recipes())}",
            param="recipe",
        )
    try:
        raw = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{reference} is not YAML: {error}", param="recipe") from error
    if not isinstance(raw, dict):
        raise InvalidInput(f"{reference} is not a mapping of keys to values", param="recipe")
    return raw


def _override(raw: dict[str, Any], text: str) -> Mistake | None:
    key, equals, value_text = text.partition("=")
    if not equals or not all(key.split(".")):
        return Mistake("--set", text, "is no override", "write --set dotted.key=value")
    try:
        value = _json_or_yaml(value_text)
    except yaml.YAMLError:
        return Mistake(key, value_text, "is not YAML", "quote the value")
    return place_value(raw, key, value)


def _json_or_yaml(text: str) -> Any:
    """What programs write is JSON, which YAML reads otherwise beyond U+FFFF."""
    if text.startswith(('"', "[", "{")):
        with suppress(ValueError):
            return json.loads(text)
    return parse_yaml(text)


def place_value(raw: dict[str, Any], key: str, value: Any) -> Mistake | None:
    """Set a dotted key in parsed YAML, in which sections may be missing."""
    *path, last = key.split(".")
    place = raw
    for part in path:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            return Mistake(key, value, f"{part} holds no keys", "check the dotted key")
    place[last] = value
    return None


def mistakes_of(
    error: ValidationError, model: type[BaseModel] = Recipe, section: str = ""
) -> list[Mistake]:
    """What pydantic found, with remedies.

    Args:
        model: what was checked; `section` is its dotted key in the recipe.
    """
    return [_mistake(item, model, section) for item in error.errors(include_url=False)]


def _mistake(item: Any, model: type[BaseModel], section: str) -> Mistake:
    inside = [str(part) for part in item["loc"]]
    location = [section, *inside] if section else inside
    field, names = field_at(inside, model)
    missing = item["type"] == "missing"
    value = None if missing else item["input"]
    remedy = field.description if field is not None and field.description is not None else ""
    if missing:
        remedy = f"give it in the recipe or with --set {'.'.join(location)}=…; {remedy}".strip("; ")
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], names, 1)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
        if location[-1] == "modules_to_save":
            remedy = "leave it out: the server loads adapters of linear modules only"
        return Mistake(".".join(location), value, "is no key of a recipe", remedy)
    if isinstance(value, dict | list):
        value = json.dumps(value, default=str)
    return Mistake(".".join(location), value, item["msg"].removeprefix("Value error, "), remedy)


def field_at(location: list[str], model: Any = Recipe) -> tuple[Any, list[str]]:
    """The field that a location names, if any, and the keys known at its place."""
    field = None
    names: list[str] = list(model.model_fields)
    for part in location:
        if part.isdecimal():  # a place in a list
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return field, names
        names = list(model.model_fields)
        field = model.model_fields.get(part)
        model = None if field is None else _model_in(field.annotation)
    return field, names


def _model_in(annotation: Any) -> Any:
    """The model inside an annotation such as `Gate | None` or `list[Kept]`, if any."""
    inside = [found for part in get_args(annotation) if (found := _model_in(part)) is not None]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return inside[0] if inside else None
