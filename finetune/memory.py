"""How much memory training takes, and how a batch is parted to fit it.

All is decided by the base, the recipe and the machine's whole memory, never by what is free
at the moment: a resumed run must part its batches as it did before, to the last digit.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from finetune.projection import tokens_at_once

_SHARE = 0.6
"""Of the memory; the rest is for the process itself, the data and other processes."""
BYTES = {"float32": 4, "bfloat16": 2}
"""Of a number."""


def kept_bytes(dtype: str, device: str) -> int:
    """Of a number that a step keeps for its backward pass, on average.

    On a CPU the adapter computes in float32: beside a base in bfloat16 it keeps its own copies
    of what it reads, so that no less is kept than with float32.
    """
    return BYTES[dtype] if device == "cuda" else BYTES["float32"]


def layer_weights(hidden: int, intermediate: int) -> int:
    """Numbers of a layer's matrices, with keys and values as wide as queries."""
    return 4 * hidden**2 + 3 * hidden * intermediate


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a base model decides the size of its activations."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    """The projection has the embedding's matrix."""

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """Read a base model's config.json; None where it says nothing of these."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        hidden, layers = config.get("hidden_size"), config.get("num_hidden_layers")
        if hidden is None or layers is None:
            return None
        intermediate = config.get("intermediate_size") or 4 * hidden
        tied = bool(config.get("tie_word_embeddings", False))
        return cls(layers, hidden, intermediate, config.get("vocab_size", 0), tied)

    @property
    def embedding_numbers(self) -> int:
        """Numbers of the embedding and of the projection, which no quantisation makes smaller."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def token_bytes(self, dtype: str, device: str, *, checkpointing: bool) -> float:
        """Bytes that a token keeps from the forward to the backward pass.

        A layer keeps its input, both norms' inputs, queries, keys, values, the attention's
        output, and two of the MLP's width; what norms and activations gave is computed again.
        With checkpointing each keeps its input, and one layer at a time the rest.
        """
        # keys and values as wide as queries, and what allocations leave unused
        layer = (12 * self.hidden + 2 * self.intermediate) * kept_bytes(dtype, device)
        if checkpointing:
            return self.layers * self.hidden * BYTES[dtype] + layer
        return self.layers * layer

    def logits_bytes(self, device: str) -> int:
        """In float32, of the tokens that are projected at once, with a softmax and a copy."""
        return 3 * tokens_at_once(device) * self.vocabulary * 4


@dataclass(frozen=True, slots=True)
class Load:
    """What a recipe asks of memory."""

    batch: int
    """Tokens of a batch."""
    longest: int
    """Tokens of the longest example as a batch has it."""


@dataclass(frozen=True, slots=True)
class Parting:
    """How a batch goes through the model."""

    micro_batch_tokens: int | None
    """Tokens at once; None: the whole batch."""
    activation_checkpointing: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a base is trained."""

    device: str
    dtype: str
    memory: int
    """Bytes of the machine or the device."""


def part(shape: Shape, load: Load, place: Place, weights: int) -> Parting:
    """Choose how to part batches so that they fit a share of the memory.

    Parts cost nothing but small products; checkpointing costs a third more time, so it is
    chosen only when the longest example alone would not fit.

    Args:
        weights: bytes of the base.
    """
    free = _SHARE * place.memory - weights - shape.logits_bytes(place.device)
    for checkpointing in (False, True):
        each = shape.token_bytes(place.dtype, place.device, checkpointing=checkpointing)
        fitting = int(free / each)
        if fitting >= max(load.batch, load.longest):
            return Parting(None, checkpointing)
        if fitting >= load.longest:
            return Parting(fitting, checkpointing)
    return Parting(load.longest, activation_checkpointing=True)  # as small as it gets


def memory_bytes(device: str, limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of a GPU, or of this machine or container."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(limit.read_text()))
    except (OSError, ValueError):
        return physical
