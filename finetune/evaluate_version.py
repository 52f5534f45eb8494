"""A published version measured again: on other data, in this process or on a running server."""

import copy
import time
from typing import Any

import torch

from adapters.bases import Base
from adapters.prompt import Renderer
from adapters.registry import Registry, Version
from finetune.base_model import load_tokenizer
from finetune.config import Recipe, apply_overrides, check_recipe
from finetune.data import Row, prepare
from finetune.evaluate import Comparison, evaluate, examined, load_adapter, report_of
from finetune.live import Live, find_live
from finetune.lora import base_of
from finetune.measures import Outcome, measure
from finetune.plan import choose_dtype, cores
from finetune.served import Served, connect


def evaluate_version(
    registry: Registry, reference: str, data: list[str], overrides: list[str], server: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a version, its base and the live version on held-out data.

    Args:
        data: files, as of a recipe's `data.test`.
        overrides: `dotted.key=value` of the recipe that the version keeps.
        server: address of a running server; none: with peft in this process.

    Returns:
        As `evaluate` does. A gate is judged and not recorded.

    Raises:
        NotFound: no such version.
        Quarantined, Removed, DigestMismatch: it can't be used.
        IncompatibleAdapter: its base is not here.
        RecipeError, BrokenData: of the overrides and the data.
        StoreFailed: no such server.
    """
    started = time.monotonic()
    version = registry.verified(reference)
    base = base_of(registry, version)
    recipe = recipe_of(version, base, data, overrides)
    tokenizer = load_tokenizer(base.path)
    prepared = prepare(recipe, Renderer(tokenizer), base.context_length, test_only=True)
    live = find_live(registry, recipe, base)
    if live is not None and live.digest == version.digest:
        live = None
    if server is None:
        torch.set_num_threads(cores())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = choose_dtype(recipe.training.dtype, device)
        model = load_adapter(base, version.folder, dtype, device)
        return evaluate(model, tokenizer, recipe, prepared, live)
    rows = examined(recipe, prepared)
    if recipe.task == "generate":  # all that is measured there is generated
        rows = rows[: recipe.evaluation.max_generated]
    outcomes = _served(server, recipe, rows, version, live) if rows else {}
    return report_of(Comparison(recipe, rows, outcomes, live), started)


def _served(
    server: str, recipe: Recipe, rows: list[Row], version: Version, live: Live | None
) -> dict[str, Outcome]:
    """What a running server answers as the base, the version and the live version."""
    models: dict[str, Version | None] = {"base": None, "adapter": version}
    if live is not None and live.version is not None:
        models["live"] = live.version
    outcomes = {}
    with connect(server) as client:
        for who, asked in models.items():
            name, digest = (recipe.base, None) if asked is None else (asked.reference, asked.digest)
            labels = (asked or version).manifest.labels
            outcomes[who] = measure(Served(client, str(name), digest, recipe, rows, labels))
    return outcomes


def recipe_of(version: Version, base: Base, data: list[str], overrides: list[str]) -> Recipe:
    """The recipe that a version keeps, with its prompt and other data; an import keeps none.

    Raises:
        RecipeError: with every mistake found.
    """
    manifest = version.manifest
    raw: dict[str, Any] = copy.deepcopy(manifest.training.get("config", {}))
    names = ("format", "columns", "encoding", "redact")
    kept = {name: raw.get("data", {}).get(name) for name in names}
    raw["data"] = {name: value for name, value in kept.items() if value is not None}
    raw["data"] |= {"train": data, "test": data}
    if manifest.languages:
        raw["data"] |= dict(zip(("source_lang", "target_lang"), manifest.languages, strict=True))
    if manifest.labels:
        raw["data"]["labels"] = manifest.labels
    raw |= {"name": manifest.name, "task": manifest.task, "base": base.name}
    raw["prompt"] = manifest.prompt.model_dump(exclude={"task"})
    mistakes = apply_overrides(raw, overrides)
    return check_recipe(raw, f"the recipe of {version.reference}", mistakes)
