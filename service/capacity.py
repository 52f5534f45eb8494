"""How many adapters the engine takes: planned from memory, the base and what is live."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters.bases import Base, read_config
from adapters.compatibility import RANKS
from adapters.registry import Registry
from service.settings import Settings

logger = logging.getLogger("modiste.capacity")

LEAST_SLOTS, MOST_SLOTS = 8, 64
SLOTS_SHARE = 0.1
"""Of the device's memory. A slot that is missing costs a load in the middle of a step."""

PLACES_SHARE = 0.15
MOST_PLACES = 1024
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine is started with."""

    max_rank: int
    slots: int
    """Adapters that may run in one step; vLLM's `max_loras`."""
    places: int
    """Versions kept loaded; vLLM's `max_cpu_loras`."""


def plan(settings: Settings, registry: Registry, base: Base, memory: int) -> Capacity:
    """Settings where they are given, else what live versions need and memory allows.

    Args:
        memory: of the device that runs the model, in bytes.
    """
    rank = lora_rank(settings, registry)
    size = adapter_bytes(base, rank, settings.lora_target_modules, settings.dtype)
    versions = {(name, number) for (name, _), number in registry.all_aliases().items()}
    versions |= {(name, tried.number) for (name, _), tried in registry.canaries().items()}
    live = len(versions)
    slots, places = settings.max_loras, settings.max_resident_versions
    if slots is None:
        wanted = min(max(LEAST_SLOTS, live), MOST_SLOTS)
        slots = max(1, min(wanted, int(memory * SLOTS_SHARE / size)))
    if places is None:
        wanted = min(max(4 * slots, 2 * live), MOST_PLACES)
        places = max(slots, live + 1, min(wanted, int(memory * PLACES_SHARE / size)))
    return Capacity(rank, slots, places)


def lora_rank(settings: Settings, registry: Registry) -> int:
    """The engine's largest rank: as set, else the smallest that every version fits in."""
    if settings.max_lora_rank is not None:
        return settings.max_lora_rank
    versions, wrong = registry.readable()
    for error in wrong:  # one that is broken stops no server
        logger.warning("not counted for the rank of adapters: %s", error)
    need = max([16, *(version.manifest.rank for version in versions)])
    return min((rank for rank in RANKS if rank >= need), default=RANKS[-1])


def adapter_bytes(base: Base, rank: int, targets: Iterable[str], dtype: str) -> int:
    """Bytes of one slot: rank * (inputs + outputs) of every adapted layer.

    For the layers of the Llama family and what is built like it; other names count as square.
    """
    config = read_config(base.path)
    hidden = int(config.get("hidden_size") or 1024)
    heads = int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    attention, shared = heads * head, int(config.get("num_key_value_heads") or heads) * head
    sides = {
        "q_proj": hidden + attention, "k_proj": hidden + shared, "v_proj": hidden + shared,
        "o_proj": attention + hidden, "gate_proj": hidden + inner, "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }  # fmt: skip
    layers = int(config.get("num_hidden_layers") or 1)
    size = BYTES.get(dtype) or BYTES.get(base.ref.dtype, 4)
    return layers * rank * size * sum(sides.get(name, 2 * hidden) for name in targets)


def memory_bytes(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """This machine's memory, or what its container may use when that is less."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no control groups, or "max"
        return total


def device_bytes(*, cpu: bool) -> int:
    """Memory of the device that runs the model: the machine's, or the first GPU's."""
    if cpu:
        return memory_bytes()
    import torch

    total: int = torch.cuda.get_device_properties(0).total_memory
    return total
