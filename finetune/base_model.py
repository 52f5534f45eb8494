"""Loading a base model with its tokenizer, from the home folder only."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from adapters.errors import InvalidInput

transformers_logging.disable_progress_bar()  # loading a local file needs no bar of its own


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """What a tokenizer reads as control tokens wherever it stands in a text."""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(token.content for token in added if token.special)


def load_model(folder: Path, dtype: str, device: str) -> Any:
    """A causal language model with frozen weights, in evaluation mode."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the base model in {folder} can't be loaded: {error}") from error
    return model.to(device).requires_grad_(False).eval()
