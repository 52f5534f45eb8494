"""A published version measured again: on other data, in this process or on a running server."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adapters.bases import Base
from adapters.probe import Probe
from adapters.prompt import Renderer
from adapters.registry import Registry, Version
from adapters.transfer import import_own
from finetune.base_model import load_tokenizer
from finetune.config import Recipe, apply_overrides, check_recipe
from finetune.data import prepare
from finetune.evaluate import Comparison, evaluate, examined, load_adapter, report_of
from finetune.live import find_live
from finetune.lora import base_of
from finetune.own_server import own_registry, serving
from finetune.plan import choose_dtype, cores
from finetune.served import START, served_outcomes


def evaluate_version(
    registry: Registry,
    reference: str,
    data: list[str],
    overrides: list[str],
    server: str | None,
    say: Callable[[str], Any] = print,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a version, its base and the live version on held-out data.

    Args:
        data: files, as of a recipe's `data.test`.
        overrides: `dotted.key=value` of the recipe that the version keeps.
        server: address of a running server; START: one that is started for it; none: with peft in
            this process.
        say: told what takes long.

    Returns:
        As `evaluate` does. A gate is judged and not recorded.

    Raises:
        NotFound: no such version.
        Quarantined, Removed, DigestMismatch: it can't be used.
        IncompatibleAdapter: its base is not here.
        RecipeError, BrokenData: of the overrides and the data.
        StoreFailed: no such server.
    """  # fmt: skip
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
        dtype = _dtype(version, recipe.training.dtype, device)
        model = load_adapter(base, version.folder, dtype, device)
        return evaluate(model, tokenizer, recipe, prepared, live)
    rows = examined(recipe, prepared)
    if recipe.task == "generate":  # all that is measured there is generated
        rows = rows[: recipe.evaluation.max_generated]
    outcomes = {}
    versions = {"adapter": version} | ({"live": live.version} if live and live.version else {})
    if rows and server == START:
        with own_server(registry, base, versions, say) as (url, own):
            outcomes = served_outcomes(url, base, recipe, rows, own)
    elif rows:
        outcomes = served_outcomes(server, base, recipe, rows, versions)
    return report_of(Comparison(recipe, rows, outcomes, live), started)


def _dtype(version: Version, wanted: str, device: str) -> str:
    """On a GPU that of the version's own evaluation, which its probe tells."""
    if wanted == "auto" and device == "cuda":
        return Probe.load(version.folder / "probe.json").dtype
    return choose_dtype(wanted, device)


@contextmanager
def own_server(
    registry: Registry, base: Base, versions: Mapping[str, Version], say: Callable[[str], Any]
) -> Iterator[tuple[str, dict[str, Version]]]:
    """A server that is started for some versions; gives its address and the versions there."""
    with tempfile.TemporaryDirectory(prefix="modiste-") as place:
        own = own_registry(registry.home, Path(place) / "home", base)
        there = {who: import_own(own, version.folder) for who, version in versions.items()}
        with serving(own, base, Path(place) / "server.log", say) as url:
            yield url, there


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
