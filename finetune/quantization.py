"""QLoRA (Dettmers et al. 2023): the frozen base in 4 bits while its adapter is trained.

Only training reads the base so. Evaluation and probe use the base as it is served: what is
published has to answer right beside whole weights.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from adapters.errors import InvalidInput
from finetune.memory import BYTES, Shape

_NF4_BYTES = 0.52
"""Of a weight: 4 bits, and 0.127 for its share of a block's scale, itself quantised."""


def quantized_bytes(parameters: int, shape: Shape) -> int:
    """Of a base that `load_quantized` loads: its embedding and projection become float32."""
    whole = min(shape.embedding_numbers, parameters)
    return int(whole * BYTES["float32"] + (parameters - whole) * _NF4_BYTES)


def kept_dtype(dtype: str, quantization: str) -> str:
    """Of what goes from layer to layer: beside a quantised base float32, whatever the products."""
    return dtype if quantization == "none" else "float32"


def check_quantization(wanted: str, device: str) -> None:
    """Look for what a quantised base needs.

    Raises:
        InvalidInput: there is no GPU, or bitsandbytes is not installed.
    """
    if wanted == "none":
        return
    remedy = "or leave out training.quantization"
    if device != "cuda":
        raise InvalidInput(
            f"training.quantization={wanted} needs a GPU, and this machine has none",
            hint=f"train on one, {remedy}",
            param="training.quantization",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInput(
            f"training.quantization={wanted} needs bitsandbytes, which is not installed",
            hint=f"install it: pip install 'modiste[qlora]', {remedy}",
            param="training.quantization",
        )


def load_quantized(folder: Path, dtype: str, device: str) -> Any:
    """A causal language model whose linear layers hold NF4, in evaluation mode.

    Args:
        dtype: of the products. Norms and the projection are float32, as peft asks for.

    Raises:
        InvalidInput: it can't be loaded.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            quantization_config=config,
            device_map={"": device},
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the base model in {folder} can't be loaded: {error}") from error
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False).eval()
