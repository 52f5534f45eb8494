"""From a trained adapter to a published version: the probe, the manifest, the registry."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.bases import Base
from adapters.errors import IncompatibleAdapter
from adapters.gate import Verdict, not_judged
from adapters.manifest import DatasetRef, Draft, Metric, SweepRef
from adapters.probe import Probe, ProbeItem
from adapters.registry import Registry, Version
from finetune.config import Recipe
from finetune.data import SPLITS, Prepared, Row, split_digest
from finetune.epochs import figures_of, final_step, kept_adapters, step_of
from finetune.forward import inner_model, run
from finetune.live import worn
from finetune.projection import project

_ITEMS, PROBE_TOKENS = 2, 16  # where a version is proved, other streams wait for their passes
_CANDIDATES = 12
_ADAPTER_TOKENS, _BASE_TOKENS = 8, 4
_PACKAGES = ("modiste", "torch", "transformers", "peft", "tokenizers", "safetensors")
_LOGS = ("metrics.jsonl", "loss.png", "preflight.json", "recipe.yaml")
_REPORTS = ("report.json", "report.html")
"""Of the evaluation, which is of a run's result alone."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A run whose adapter is there."""

    recipe: Recipe
    prepared: Prepared
    base: Base
    folder: Path


def publish(registry: Registry, run: Trained, probe: Probe, report: Mapping[str, Any]) -> Version:
    """Publish the adapter of a run.

    Args:
        report: of its evaluation.

    Raises:
        IncompatibleAdapter: the adapter changes nothing, or the engine can't serve it.
    """
    if probe.effect() == 0.0:
        raise IncompatibleAdapter(
            f"adapter {run.recipe.name} has no effect: it answers exactly like the base model",
            hint="train for more steps or with a higher training.learning_rate",
        )
    draft = make_draft(run, probe, report)
    return _publish(registry, run, run.folder / "adapter", probe, draft, (*_LOGS, *_REPORTS))


def publish_kept(
    registry: Registry,
    run: Trained,
    load: Callable[[], Any],
    dtype: str,
    say: Callable[[str], Any],
) -> Iterator[tuple[int, Version]]:
    """Publish the adapters that a run kept at the ends of epochs, each with a probe of its own.

    Nothing was measured on held-out examples, so none has passed the recipe's gate.

    Args:
        load: gives the base with the adapter of the run.

    Returns:
        The step after which each was kept, and its version.
    """
    kept = kept_adapters(run.folder, run.recipe.training, final_step(run.folder))
    gate = run.recipe.gate
    for adapter in kept:
        step, model = step_of(adapter), load()
        with worn(model, adapter):
            probe = make_probe(model, run.prepared, dtype)
        if probe.effect() == 0.0:  # it is no use, and the result may be
            say(f"the adapter after step {step} has no effect, and is not published")
            continue
        draft = make_draft(run, probe, {"metrics": {}})
        verdict = None if gate is None else not_judged(gate, f"it is from step {step} of its run")
        draft = draft.model_copy(update={"checkpoint": step, "gate": verdict})
        version = _publish(registry, run, adapter, probe, draft, _LOGS)
        say(f"{version.reference} is the adapter after step {step}")
        yield step, version


def tell(run: Trained, version: Version, step: int, measured: int) -> dict[str, Any]:
    """A published adapter of a run, for programs.

    Args:
        step: after which it was kept.
        measured: the step whose figures are the adapter's.
    """
    return {
        "step": step, "version": version.reference, "digest": version.digest,
        "fine_tuned_model": version.fine_tuned_model, "metrics": figures_of(run.folder, measured),
    }  # fmt: skip


def _publish(
    registry: Registry, run: Trained, adapter: Path, probe: Probe, draft: Draft,
    logs: tuple[str, ...],
) -> Version:  # fmt: skip
    parcel = run.folder / "parcel"
    shutil.rmtree(parcel, ignore_errors=True)
    shutil.copytree(adapter, parcel)
    probe.save(parcel / "probe.json")
    for name in logs:
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, parcel / name)
    try:
        return registry.publish(parcel, draft)
    finally:
        shutil.rmtree(parcel, ignore_errors=True)


def make_draft(run: Trained, probe: Probe, report: Mapping[str, Any]) -> Draft:
    """What the manifest says about a run."""
    recipe = run.recipe
    config = (run.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    chosen = run.folder / "sweep.json"
    languages = [recipe.data.source_lang, recipe.data.target_lang]
    return Draft(
        name=recipe.name,
        project=recipe.project,
        task=recipe.task,
        languages=[tag for tag in languages if tag is not None],
        labels=run.prepared.labels,
        base=run.base.ref,
        peft=json.loads(config),
        prompt=recipe.template,
        training={
            "config": recipe.model_dump(mode="json"),
            "seed": recipe.training.seed,
            "packages": package_versions(),
        },
        datasets=dataset_refs(run.prepared),
        metrics={name: Metric(**entry) for name, entry in report["metrics"].items()},
        live=report["live"]["identity"] if _compared(report) else None,
        gate=None if report.get("gate") is None else Verdict(**report["gate"]),
        probe=probe.digest(),
        sweep=SweepRef.model_validate_json(chosen.read_text()) if chosen.is_file() else None,
        parents=[] if recipe.parent is None else [recipe.parent],
    )


def _compared(report: Mapping[str, Any]) -> bool:
    live = report.get("live")
    return live is not None and bool(live["compared"])


def make_probe(model: Any, prepared: Prepared, dtype: str) -> Probe:
    """The probe of a run: some of its short prompts, held-out ones first."""
    prompts = probe_prompts(chain(prepared.of("test"), prepared.of("train")))
    return record_probe(model, prompts, dtype)


def record_probe(model: Any, prompts: list[list[int]], dtype: str) -> Probe:
    """Record what the model says after the ends of a few prompts, with and without the adapter.

    Those are kept which the adapter changes most: a probe that hardly tells the adapter from its
    base proves little.

    Args:
        model: a base with an adapter, as peft wraps it.
        prompts: token ids, [N][T_n], none empty.
    """
    prompts = list({tuple(ends): ends for ends in map(ends_of, prompts)}.values())
    with torch.inference_mode():
        adapter = [_next_logprobs(model, ids) for ids in prompts]
        with model.disable_adapter():
            base = [_next_logprobs(model, ids) for ids in prompts]
    items = [_item(*parts) for parts in zip(prompts, adapter, base, strict=True)]
    items.sort(key=lambda item: -Probe(dtype=dtype, items=[item]).effect())
    return Probe(dtype=dtype, items=items[:_ITEMS])


def measure(model: Any, probe: Probe) -> list[list[float]]:
    """Log-probabilities [items][K] in nats that a model gives to the probed tokens."""
    with torch.inference_mode():
        return [
            _next_logprobs(model, item.prompt_ids)[item.token_ids].tolist() for item in probe.items
        ]


def probe_prompts(rows: Iterable[Row]) -> list[list[int]]:
    """Up to twelve prompts whose ends differ, the first ones."""
    different: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        different.setdefault(tuple(ends_of(row.prompt_ids)), row.prompt_ids)
        if len(different) == _CANDIDATES:
            break
    return list(different.values())


def ends_of(ids: list[int]) -> list[int]:
    """The first token of a prompt, which some models need, and its last ones: 16 in all."""
    return ids if len(ids) <= PROBE_TOKENS else [ids[0], *ids[1 - PROBE_TOKENS :]]


def _next_logprobs(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities [V] in float32 after a prompt run alone, as a server runs it."""
    states = run(inner_model(model), [ids], 0).states[:, -1]
    return torch.log_softmax(project(model, states)[0], -1)


def _item(ids: list[int], adapter: Tensor, base: Tensor) -> ProbeItem:
    likely = [*adapter.topk(_ADAPTER_TOKENS).indices.tolist()]
    likely += base.topk(_BASE_TOKENS).indices.tolist()
    tokens = list(dict.fromkeys(likely))
    return ProbeItem(
        prompt_ids=ids,
        token_ids=tokens,
        adapter_logprobs=adapter[tokens].tolist(),
        base_logprobs=base[tokens].tolist(),
    )


def dataset_refs(prepared: Prepared) -> list[DatasetRef]:
    """Each split of the data by content."""
    found = []
    for split in SPLITS:
        rows = prepared.of(split)
        files = prepared.sources.get(split, prepared.sources["train"])
        source = ", ".join(Path(path).name for path in files)
        held_out = "" if split in prepared.sources else " (held out)"
        if rows:
            found.append(
                DatasetRef(
                    digest=split_digest(rows), examples=len(rows), split=split,
                    source=source + held_out,
                )
            )  # fmt: skip
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what an adapter does, as installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
