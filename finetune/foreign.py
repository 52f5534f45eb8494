"""Adapters that another trainer made: do they fit the base, and what do they do to it?

peft passes over tensors whose names it doesn't know, and a server would load what is left. So
the file's own names and shapes are compared with the base's modules, and the adapter is loaded
with a configuration made of them alone.
"""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters import bases
from adapters.bases import Base
from adapters.compatibility import check_tensors
from adapters.digests import digest_bytes
from adapters.errors import IncompatibleAdapter, InvalidInput
from adapters.manifest import Draft
from adapters.probe import Probe, tolerance
from adapters.prompt import (
    AnswerInput,
    ClassifyInput,
    GenerateInput,
    Renderer,
    Task,
    TaskInput,
    TranslateInput,
    default_prompt,
)
from adapters.registry import Registry, Version
from adapters.transfer import take
from finetune.foreign_files import (
    CONFIG,
    WEIGHTS,
    check_revision,
    check_tokenizer,
    matrix_shapes,
    name_targets,
    read_config,
    refuse_pickles,
)

TEXTS = (
    "The meeting was moved to Thursday because the room is taken.",
    "Please save your changes before you close the window.",
    "I waited forty minutes and nobody came, but the food was good.",
    "What should I pack for a week in the mountains in October?",
    "The printer is out of paper.",
    "Write two sentences about the sea.",
)
"""Probed when no texts of the adapter's own task are given."""

_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_OWN_BASE = "import it with the base that it was trained on: --base NAME"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the importer says of an adapter, since its files don't."""

    name: str
    task: Task = "generate"
    base: str | None = None
    languages: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    project: str = "default"
    texts: tuple[str, ...] = TEXTS


def import_foreign(
    registry: Registry, folder: Path, wanted: Wanted, progress: Progress = lambda _: None
) -> Version:
    """Check the adapter that peft saved in a folder, probe it, and publish it.

    Raises:
        IncompatibleAdapter: not for this base or not for the engine, or without effect.
        InvalidInput: a file is missing or unreadable, or a text is too long for the base.
        UnsafeFile: its weights are pickles, or links.
        BaseNotFound: no such base.
        StoreFailed: nothing was published.
    """
    base = registry.base(wanted.base)
    if not base.lora:
        raise IncompatibleAdapter(
            f"base {base.name} can't be adapted: {base.lora_reason}", param="base"
        )
    refuse_pickles(folder)
    with registry.store.scratch() as parcel:
        for name in (CONFIG, WEIGHTS):
            take(registry, folder / name, parcel / name)
        progress("checking its configuration and tensors")
        config = read_config(parcel / CONFIG)
        if warning := check_revision(config, wanted.base):
            progress(warning)
        shapes = matrix_shapes(parcel / WEIGHTS)
        with registry.store.writing():
            name_targets(parcel / CONFIG, config, shapes)
        check_tensors(parcel / WEIGHTS, config)
        check_tokenizer(folder, base)
        _check_template(folder, wanted, base, progress)
        progress(f"loading it on {base.name}")
        probe = _probe(base, parcel, (config, shapes), wanted)
        _check_effect(probe, base, progress)
        progress("publishing")
        with registry.store.writing():
            probe.save(parcel / "probe.json")
        return registry.publish(parcel, _draft(wanted, base, config, probe))


def _check_template(folder: Path, wanted: Wanted, base: Base, progress: Progress) -> None:
    """Chats are rendered with the base's template, so an adapter for chat must know it."""
    template = None
    with suppress(OSError, ValueError, AttributeError):  # unreadable ones are not used anyway
        template = bases.chat_template(folder)
    if not template or digest_bytes(template.encode()) == base.ref.chat_template:
        return
    if wanted.task == "generate":
        raise IncompatibleAdapter(
            f"its chat template differs from that of {base.name}, with which chats are rendered",
            hint="train it with the base's own template; where the template beside it was not "
            "used in training, leave the tokenizer's files out of the folder",
        )
    progress(f"warning: its chat template differs; prompts are made with {base.name}'s")


def _probe(
    base: Base, parcel: Path, said: tuple[dict[str, Any], dict[str, list[int]]], wanted: Wanted
) -> Probe:
    """Load base and adapter, and record a probe.

    Args:
        said: the configuration and the tensors' shapes.
    """
    import torch
    from peft import LoraConfig, PeftModel

    from finetune.base_model import load_model, load_tokenizer
    from finetune.forward import projection_is_plain
    from finetune.plan import choose_dtype, cores
    from finetune.publish import record_probe

    prompts = probe_prompts(Renderer(load_tokenizer(base.path)), wanted, base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = choose_dtype("auto", device)
    torch.set_num_threads(cores())
    model = load_model(base.path, dtype, device)
    config, shapes = said
    modules = check_fit(model, shapes, base.name)
    plain = LoraConfig(
        r=config["r"], lora_alpha=config["lora_alpha"], target_modules=modules,
        use_rslora=bool(config.get("use_rslora")), task_type="CAUSAL_LM",
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
    )  # fmt: skip
    adapted = PeftModel.from_pretrained(model, str(parcel), config=plain).eval()
    probe = record_probe(adapted, prompts, dtype)
    if not all(math.isfinite(value) for item in probe.items for value in item.adapter_logprobs):
        raise IncompatibleAdapter(
            "with the adapter, log-probabilities are not finite",
            hint="look for NaN and infinite values in its weights",
        )
    if not projection_is_plain(adapted, prompts[0][:16]):
        raise IncompatibleAdapter(
            f"base {base.name}: {base.architecture} changes its logits after the projection",
            hint="use another base model",
            param="base",
        )
    return probe


def check_fit(model: Any, shapes: dict[str, list[int]], base_name: str) -> list[str]:
    """Names of the base's linear layers that an adapter changes, all of them fitting.

    Args:
        shapes: of each tensor, lora_A [R, in] and lora_B [out, R].

    Raises:
        IncompatibleAdapter: names a tensor without its module, or with another shape.
    """
    from torch.nn import Linear

    layers = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
    found = set()
    for tensor, shape in shapes.items():
        match = _TENSOR.fullmatch(tensor)
        if match is None or match[1] not in layers:
            raise IncompatibleAdapter(
                f"{tensor} belongs to no linear layer of base {base_name}", hint=_OWN_BASE
            )
        name, side = match.groups()
        layer = layers[name]
        fitting = [shape[0], layer.in_features] if side == "A" else [layer.out_features, shape[1]]
        if shape != fitting:
            raise IncompatibleAdapter(
                f"{tensor} has shape {shape}, base {base_name} needs {fitting}", hint=_OWN_BASE
            )
        found.add(name)
    return sorted(found)


def probe_prompts(renderer: Renderer, wanted: Wanted, base: Base) -> list[list[int]]:
    """Token ids of the texts in the prompt of the task, [N][T_n].

    Raises:
        InvalidInput: one is longer than the base's context.
    """
    template = default_prompt(wanted.task)
    prompts = [renderer.prompt_ids(template, _input(text, wanted)) for text in wanted.texts]
    if (longest := max(map(len, prompts))) >= base.context_length:
        raise InvalidInput(
            f"a prompt has {longest} tokens, base {base.name} takes {base.context_length}",
            hint="give shorter texts",
            param="prompts",
        )
    return prompts


def _input(text: str, wanted: Wanted) -> TaskInput:
    match wanted.task:
        case "generate":
            return GenerateInput(text)
        case "translate":
            return TranslateInput(text, *wanted.languages)
        case "answer":
            return AnswerInput("What is this about?", text)
        case "classify":
            return ClassifyInput(text, tuple(wanted.labels))


def _check_effect(probe: Probe, base: Base, progress: Progress) -> None:
    effect = probe.effect()
    if effect == 0.0:
        raise IncompatibleAdapter(
            f"it has no effect: it answers exactly like base {base.name}",
            hint="check that it was trained; give texts of its own task: --prompts FILE",
        )
    if effect < (limit := tolerance(probe.dtype)):
        progress(
            f"warning: it changes the probe by {effect:.2g} nats, and servers tell {limit:g} apart;"
            " give texts of its own task: --prompts FILE"
        )


def _draft(wanted: Wanted, base: Base, config: dict[str, Any], probe: Probe) -> Draft:
    from finetune.publish import package_versions

    try:
        return Draft(
            name=wanted.name, project=wanted.project, task=wanted.task,
            languages=wanted.languages, labels=wanted.labels, base=base.ref, peft=config,
            prompt=default_prompt(wanted.task), probe=probe.digest(),
            training={"imported": True, "packages": package_versions()},
        )  # fmt: skip
    except ValidationError as error:
        raise InvalidInput(str(error.errors(include_url=False)[0]["msg"])) from error
