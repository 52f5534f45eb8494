"""LoRAs of every kind that peft trains, and what vLLM makes of them without an engine."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, preprocess_loraga
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import is_in_target_modules

from service.settings import Settings

Outcome = Literal["right", "wrong", "raises"]

PROMPT = torch.tensor([[1, 7, 30, 42, 7, 99, 5, 5, 12]])
EXPECTED = {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens",
    "lm_head",
}  # fmt: skip
"""What vLLM finds to adapt in a Llama."""


@dataclass
class Variant:
    """What a trainer asked peft for, and what was changed by hand in the saved configuration."""

    options: dict[str, Any] = field(default_factory=dict)
    kind: Callable[..., Any] = LoraConfig
    edit: dict[str, Any] = field(default_factory=dict)


def train(base: Path, variant: Variant, folder: Path) -> Tensor:
    """Save an adapter as peft does; returns the logits of the model that was trained, [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    known = {"target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    if variant.kind is LoraConfig:
        known |= {"r": 4, "lora_alpha": 8}
    config = variant.kind(**{**known, **variant.options})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if variant.options.get("init_lora_weights") == "lora_ga":
            preprocess_loraga(model, config, lambda: _gradients(model))
        adapted = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn_like(weight) * (0.3 if "lora_B" in name else 0.05))
    adapted.eval().save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **variant.edit}))
    return logits(adapted)


def _gradients(model: Any) -> None:
    model(PROMPT, labels=PROMPT).loss.backward()


def vllm_serves(base: Path, folder: Path, trained: Tensor) -> Outcome:
    """Load with vLLM's own code, add what it loaded to the base, and compare the answers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers, targets = dict(model.named_modules()), Settings().lora_target_modules
    try:
        helper = PEFTHelper.from_local_dir(str(folder), None)
        helper.validate_legal(LoRAConfig(max_lora_rank=16, max_loras=1))
        loaded = LoRAModel.from_local_checkpoint(
            str(folder), EXPECTED, helper, device="cpu", dtype=torch.float32
        )
        for name, lora in loaded.loras.items():
            lora.optimize()  # applies the scale
            if name in layers and is_in_target_modules(name, targets):  # others are passed over
                layers[name].weight.data.add_(lora.lora_b @ lora.lora_a)
    except (ValueError, RuntimeError, TypeError):
        return "raises"
    return "right" if torch.allclose(logits(model), trained, atol=1e-3) else "wrong"


def logits(model: Any) -> Tensor:
    """Log-probabilities after each token of the prompt, [T, V]."""
    with torch.no_grad():
        found: Tensor = model(PROMPT).logits[0].log_softmax(-1)
    return found
