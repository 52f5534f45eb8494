"""Adapters to merge, what they change, and the merge itself, for tests of its parts."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.bases import Base
from adapters.registry import Registry, Version
from finetune.merge import merge, parser
from tests.made import Recipe, publish

WEIGHTS = "adapter_model.safetensors"
Changes = dict[str, Tensor]
"""By layer [out, in], in float64."""


def with_parents(home: Path, base: Base) -> Registry:
    """`a` and `b` of rank 8, and `c` of rank 4."""
    registry = Registry.open(home)
    for recipe in (Recipe("a", 1), Recipe("b", 2), Recipe("c", 3, rank=4)):
        publish(registry, base, recipe)
    return registry


def merge_into_m(registry: Registry, *options: str) -> Version:
    return merge(parser().parse_args([*options, "--into", "m"]), registry, lambda _: None)


def changes(version: Version) -> Changes:
    """What a version adds to its base's weights, worked out from its files alone."""
    config = version.manifest.peft
    tensors = load_file(version.folder / WEIGHTS)
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    return {
        name.removesuffix(".lora_A.weight"): scale
        * tensors[name.replace("lora_A", "lora_B")].double()
        @ tensor.double()
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


def summed(parts: list[tuple[float, Changes]]) -> Changes:
    layers = {layer for _, change in parts for layer in change}
    return {
        layer: torch.stack([w * change[layer] for w, change in parts if layer in change]).sum(0)
        for layer in layers
    }


def distance(one: Changes, other: Changes) -> float:
    """In sizes of the second."""
    assert one.keys() == other.keys()
    apart = sum(float((one[layer] - other[layer]).pow(2).sum()) for layer in other)
    return float((apart / sum(float(c.pow(2).sum()) for c in other.values())) ** 0.5)


def of(registry: Registry, *names: str) -> list[Changes]:
    return [changes(registry.find(f"{name}@1")) for name in names]
