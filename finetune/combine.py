"""The arithmetic of merging: peft's add_weighted_adapter, told truthfully.

    cat                the weighted sum of the changes, exactly; ranks add up
    svd                that sum, cut to a rank
    linear             peft sums A and B apart, so products of one parent's B with another's A
                       come in: a rough approximation
    ties, dare_linear, dare_ties, magnitude_prune
                       of A and B apart, too
    …_svd              the same of the changes themselves, cut to a rank

Needs only the shapes of the base, so it is done on the CPU in float32 whatever the machine.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.bases import Base
from adapters.errors import IncompatibleAdapter, InvalidInput
from finetune.foreign_files import CONFIG, WEIGHTS
from finetune.lora import Lora, attach, peft_name, size_of_change
from finetune.methods import Mix

MOST_RANK = 512
"""The largest that vLLM can be started with."""
_NOTHING = 1e-6
"""Of the parents' changes; what is left of changes that cancel is rounding."""
_MERGED = "merged"


@dataclass(frozen=True, slots=True)
class Combined:
    """What a merge made."""

    lora: Lora
    config: dict[str, Any]
    off_sum: float | None
    """Distance from the weighted sum of the parents' changes, in sizes of that sum, if any."""


def combine(base: Base, parents: Sequence[Lora], mix: Mix, folder: Path) -> Combined:
    """Merge adapters and write adapter_model.safetensors and adapter_config.json.

    Raises:
        IncompatibleAdapter: a parent does not fit the base, or the merge has no effect or a rank
            that vLLM does not take.
        InvalidInput: the method needs equal ranks, or --rank is larger than a layer.
    """
    check_ranks(parents, mix)
    model = skeleton(base)
    for parent in parents:
        parent.check(model, base)
    if mix.rank is not None:
        _check_cut(model, parents, mix.rank)
    lora, config = _merge(model, parents, mix)
    config["base_model_name_or_path"] = base.name  # peft would name a folder of this machine
    off_sum = _check_effect(lora, parents, mix)
    tensors = {name: tensor.contiguous() for name, tensor in lora.tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return Combined(lora, config, off_sum)


def check_ranks(parents: Sequence[Lora], mix: Mix) -> None:
    """Refuse what peft or vLLM can't do.

    Raises:
        InvalidInput: the method needs equal ranks.
        IncompatibleAdapter: the merged rank is over vLLM's largest.
    """
    told = ", ".join(f"{parent.name} has rank {parent.rank}" for parent in parents)
    if mix.needs_equal_ranks and len({parent.rank for parent in parents}) > 1:
        other = "svd --rank N" if mix.method == "linear" else f"{mix.method}_svd --rank N"
        raise InvalidInput(
            f"{mix.method} needs parents of one rank; {told}",
            hint=f"use --method cat, which takes any ranks, or --method {other}",
            param="method",
        )
    rank = sum(p.rank for p in parents) if mix.method == "cat" else mix.rank or 0
    if rank > MOST_RANK:
        raise IncompatibleAdapter(
            f"the merged adapter would have rank {rank}, and vLLM takes {MOST_RANK} at most",
            hint="use --method svd --rank N",
            param="method",
        )


def skeleton(base: Base) -> Any:
    """The base's modules in float32 with memory that is never touched: shapes, no weights."""
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to_empty(device="cpu").requires_grad_(False)


def _check_cut(model: Any, parents: Sequence[Lora], rank: int) -> None:
    layers = {layer for parent in parents for layer in parent.layers()}
    narrow = min(min(model.get_submodule(layer).weight.shape) for layer in layers)
    if rank > narrow:
        raise InvalidInput(
            f"--rank {rank} is more than the narrowest layer has ({narrow})",
            hint=f"give --rank {narrow} or less, or use --method cat",
            param="rank",
        )


def _merge(model: Any, parents: Sequence[Lora], mix: Mix) -> tuple[Lora, dict[str, Any]]:
    wrapped = attach(model, list(parents))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density", UserWarning)  # 1 is meant: no pruning
        torch.manual_seed(mix.seed or 0)
        wrapped.add_weighted_adapter(
            [peft_name(number) for number in range(len(parents))], list(mix.weights), _MERGED,
            combination_type=mix.method, density=mix.density, svd_rank=mix.rank,
            svd_full_matrices=False,
        )  # fmt: skip
    found: dict[str, Tensor] = get_peft_model_state_dict(wrapped, adapter_name=_MERGED)
    config = json.loads(json.dumps(wrapped.peft_config[_MERGED].to_dict(), default=_plain))
    layers = {name for parent in parents for name in parent.layers()}
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in layers})
    config["inference_mode"] = True
    scale = config["lora_alpha"] / config["r"]
    return Lora(_MERGED, config["r"], scale, dict(sorted(found.items()))), config


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _check_effect(lora: Lora, parents: Sequence[Lora], mix: Mix) -> float | None:
    """The distance from the weighted sum; refuses a merge that changes nothing."""
    parts = list(zip(mix.weights, parents, strict=True))
    largest = max(abs(weight) * size_of_change([(1.0, parent)]) for weight, parent in parts)
    if not size_of_change([(1.0, lora)]) > _NOTHING * largest:
        raise IncompatibleAdapter(
            "the merged adapter has no effect: what its parents change cancels out or was pruned",
            hint="give other --weights or a higher --density",
            param="weights",
        )
    whole = size_of_change(parts)
    apart = size_of_change([(1.0, lora), *((-weight, parent) for weight, parent in parts)])
    return apart / whole if whole > _NOTHING * largest else None
