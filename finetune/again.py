"""A version's recipe once more, on new data or a new base; the version is kept as its parent."""

import copy

from adapters.bases import Base
from adapters.errors import BaseNotFound, InvalidInput
from adapters.registry import Registry, Version
from finetune.config import Recipe, apply_overrides, check_recipe


def repeated_recipe(
    registry: Registry,
    reference: str,
    data: list[str],
    base: str | None = None,
    overrides: list[str] | None = None,
) -> Recipe:
    """The recipe that made a version, with other training data or another base.

    What was held out by files of its own stays, so that figures compare with the parent's; a
    part of the training data is held out of the new data by the same digests.

    Args:
        data: replaces `data.train`, unless empty.
        base: name of a base model; without it the parent's.
        overrides: `dotted.key=value` for any other key.

    Raises:
        InvalidInput: neither data nor base is given, or the version was not trained by a recipe.
        BaseNotFound: the parent's base model is not here any more.
        RecipeError: the recipe has keys of another release, or an override is a mistake.
        NotFound: no such version.
    """
    if not data and base is None:
        raise InvalidInput(
            "again needs something new",
            hint="give --data FILE, or --base NAME for another base model",
            param="data",
        )
    version = registry.find(reference)
    raw = copy.deepcopy(version.manifest.training.get("config"))
    if not isinstance(raw, dict):
        raise InvalidInput(
            f"{version.reference} has no recipe to repeat: it was imported or merged",
            hint="write a recipe for `finetune run`",
            param="version",
        )
    raw["base"] = _base_of(registry, version).name if base is None else registry.base(base).name
    raw["parent"] = f"{version.name}@{version.digest}"
    if data:
        raw["data"] = {**raw["data"], "train": data}
    return check_recipe(
        raw, f"recipe of {version.reference}", apply_overrides(raw, overrides or [])
    )


def _base_of(registry: Registry, version: Version) -> Base:
    """The parent's base model, whatever it is called here; it must be the same content."""
    wanted = version.manifest.base
    for base in registry.bases():
        if base.ref.fingerprint == wanted.fingerprint:
            return base
    raise BaseNotFound(
        f"the base model of {version.reference}, {wanted.name}, is not here in that content",
        hint="name another one: --base NAME",
        param="base",
    )
