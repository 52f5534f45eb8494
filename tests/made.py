"""Bases and adapters for tests that need their mechanics: tiny, random, with honest probes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.bases import Base, fingerprint
from adapters.manifest import Draft
from adapters.probe import Probe, ProbeItem
from adapters.prompt import Renderer, Task, default_prompt
from adapters.registry import Registry, Version
from tests.tiny import make_tiny_base

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROBED = ("save the file", "the folder could not be opened", "try again")


def add_tiny_base(registry: Registry, name: str = "tiny", seed: int = 0) -> Base:
    """A tiny random base, recorded as `modiste base add` would."""
    folder = make_tiny_base(registry.home.bases / name, seed)
    base = Base(
        name=name, path=folder, source="tests", ref=fingerprint(folder, name, "float32"),
        context_length=512, architecture="LlamaForCausalLM", parameters=100_000, lora=True,
        tasks=["generate", "translate", "answer", "classify"],
    )  # fmt: skip
    registry.add_base(base)
    return base


@dataclass
class Recipe:
    """What a random adapter is like; `change` may spoil its folder before publication."""

    name: str
    seed: int = 0
    task: Task = "generate"
    rank: int = 8
    scale: float = 0.3
    labels: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)


def random_adapter(base: Base, recipe: Recipe) -> PeftModel:
    """A LoRA with random A and B, strong enough to change most answers."""
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        adapted = get_peft_model(model, config)
        randomise_b(adapted, recipe)
    return adapted.eval()


def randomise_b(adapted: PeftModel, recipe: Recipe) -> None:
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, recipe.scale)


def make_probe(adapted: PeftModel, renderer: Renderer) -> Probe:
    items = []
    for text in PROBED:
        ids = renderer.chat_ids([{"role": "user", "content": text}])
        tokens = torch.tensor([ids])
        with torch.no_grad():
            with_it = adapted(tokens).logits[0, -1].log_softmax(-1)
            with adapted.disable_adapter():
                without = adapted(tokens).logits[0, -1].log_softmax(-1)
        asked = sorted({*with_it.topk(8).indices.tolist(), *without.topk(4).indices.tolist()})
        items.append(
            ProbeItem(
                prompt_ids=ids, token_ids=asked,
                adapter_logprobs=with_it[asked].tolist(), base_logprobs=without[asked].tolist(),
            )
        )  # fmt: skip
    return Probe(dtype="float32", items=items)


def adapter_folder(base: Base, recipe: Recipe, folder: Path) -> Draft:
    """Write a publishable folder and return its draft."""
    return write_folder(random_adapter(base, recipe), base, recipe, folder)


def write_folder(adapted: PeftModel, base: Base, recipe: Recipe, folder: Path) -> Draft:
    renderer = Renderer(AutoTokenizer.from_pretrained(base.path))
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    probe = make_probe(adapted, renderer)
    probe.save(folder / "probe.json")
    peft: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return Draft(
        name=recipe.name, task=recipe.task, labels=recipe.labels, languages=recipe.languages,
        base=base.ref, peft=peft, prompt=default_prompt(recipe.task), probe=probe.digest(),
    )  # fmt: skip


def publish(registry: Registry, base: Base, recipe: Recipe) -> Version:
    """Publish a random adapter."""
    folder = registry.home.root / "made" / f"{recipe.name}-{recipe.seed}"
    draft = adapter_folder(base, recipe, folder)
    return registry.publish(folder, draft)
