"""A published version's matrices, on its base or beside it."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from adapters.bases import Base
from adapters.errors import IncompatibleAdapter
from adapters.registry import Registry, Version
from finetune.foreign import check_fit
from finetune.foreign_files import WEIGHTS

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter; a layer's change is scale * B @ A."""

    name: str
    rank: int
    scale: float
    tensors: dict[str, Tensor]
    """In float32 by peft's names: lora_A [R, in] and lora_B [out, R]."""

    @classmethod
    def of(cls, version: Version) -> Self:
        """Read a version's files, which the caller has verified."""
        tensors = load_file(version.folder / WEIGHTS)
        config = version.manifest.peft
        root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
        return cls(
            name=version.reference, rank=config["r"], scale=config["lora_alpha"] / root,
            tensors={name: tensor.float() for name, tensor in sorted(tensors.items())},
        )  # fmt: skip

    def layers(self) -> list[str]:
        """Names of the base's layers that it changes."""
        end = ".lora_A.weight"
        return [n.removeprefix(_PREFIX).removesuffix(end) for n in self.tensors if n.endswith(end)]

    def matrices(self, layer: str) -> tuple[Tensor, Tensor]:
        """B [out, R] with the scale in it, and A [R, in]."""
        a, b = (self.tensors[f"{_PREFIX}{layer}.lora_{side}.weight"] for side in "AB")
        return self.scale * b, a

    def check(self, model: Any, base: Base) -> None:
        """Raises IncompatibleAdapter when a matrix has no layer in the base, or another shape."""
        check_fit(model, {name: list(t.shape) for name, t in self.tensors.items()}, base.name)

    def config(self) -> LoraConfig:
        """A configuration for peft made of the matrices alone, never of what a file says."""
        return LoraConfig(
            r=self.rank, lora_alpha=self.scale * self.rank, target_modules=self.layers(),
            task_type="CAUSAL_LM",
        )  # fmt: skip


def attach(model: Any, loras: list[Lora]) -> Any:
    """Wrap a base in peft with adapters, named as `peft_name` says; the first is active."""
    wrapped = get_peft_model(model, loras[0].config(), adapter_name=peft_name(0))
    for number, lora in enumerate(loras):
        if number:
            wrapped.add_adapter(peft_name(number), lora.config())
        set_peft_model_state_dict(wrapped, lora.tensors, adapter_name=peft_name(number))
    return wrapped.eval()


def peft_name(number: int) -> str:
    """peft looks for these in the names of tensors, where a bare number is a layer's."""
    return f"adapter{number}"


def base_of(registry: Registry, version: Version) -> Base:
    """The registry's base with the content that a version was made for.

    Raises:
        IncompatibleAdapter: there is none.
    """
    wanted = version.manifest.base
    same = [base for base in registry.bases() if not wanted.differences(base.ref)]
    if not same:
        raise IncompatibleAdapter(
            f"{version.reference} was made for base {wanted.name!r}, which is not here",
            hint="add that base: `modiste base add SOURCE`",
            param="base",
        )
    return next((base for base in same if base.name == wanted.name), same[0])


def size_of_change(parts: list[tuple[float, Lora]]) -> float:
    """Frobenius norm of the weighted sum of adapters' changes over all layers.

    ||sum of B A||² is the sum of the entries of (BᵀB) * (AAᵀ) for stacked B and A, so no matrix
    of a layer's own size is made. Changes that cancel leave about 1e-8 of their size.
    """
    total = 0.0
    for layer in sorted({layer for _, lora in parts for layer in lora.layers()}):
        pairs = [
            (weight * b.double(), a.double())
            for weight, lora in parts if layer in lora.layers()
            for b, a in [lora.matrices(layer)]
        ]  # fmt: skip
        b = torch.cat([b for b, _ in pairs], 1)  # [out, sum of R]
        a = torch.cat([a for _, a in pairs], 0)  # [sum of R, in]
        total += float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(max(total, 0.0))
