"""What a run will use: device, dtype, threads, batches, and how long it will take."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from adapters.bases import Base
from finetune.batching import Batches
from finetune.config import Recipe
from finetune.data import Prepared, Row
from finetune.memory import BYTES, Load, Parting, Place, Shape, memory_bytes, part
from finetune.objectives import objective_of, usable_rows
from finetune.options import Training
from finetune.precision import training_dtype
from finetune.quantization import check_quantization, kept_dtype, quantized_bytes

_EFFICIENCY = 0.5
"""Share of the time of a step that is matrix products; measured 0.4 to 0.6 with a
135M-parameter model on 2 cores (the rest is norms, attention and the optimiser)."""
_FLOPS_A_TOKEN_AND_PARAMETER = 4
"""Two forward and two backward: weights are frozen, so only activations get gradients."""
_RECOMPUTED = 0.5
"""Activation checkpointing's second forward pass, in steps."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The machine's part of a run."""

    device: str
    dtype: str
    threads: int
    batches_per_epoch: int
    steps: int
    tokens: int
    """Trained on in all, every pass counted."""
    tokens_per_second: float
    """Expected."""
    micro_batch_tokens: int | None = None
    """Tokens that go through the model at once; None: a whole batch."""
    activation_checkpointing: bool = False

    @property
    def seconds(self) -> float:
        return self.tokens / self.tokens_per_second


def cores() -> int:
    """Cores that this process may run on; a container's limit on time counts too."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    if quota == "max":
        return allowed
    return max(1, min(allowed, int(quota) // int(period)))


def choose_dtype(wanted: str, device: str) -> str:
    """For a probe: float32 on a CPU, which is exact there; bfloat16 on a GPU that has it."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def make_plan(
    recipe: Recipe,
    train: Sequence[Row],
    parameters: int,
    base: Path | None = None,
    precision: Path | None = None,
) -> Plan:
    """Plan a run over the given training rows on this machine.

    Args:
        parameters: of the base model.
        base: its folder; without it, neither memory nor the faster dtype is looked at.
        precision: a file that keeps the measured dtype, as `training_dtype` says.

    Raises:
        InvalidInput: the recipe wants a quantised base, which this machine can't train.
    """
    options = recipe.training
    objective = objective_of(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = cores()
    torch.set_num_threads(threads)
    shape = None if base is None else Shape.of(base)
    dtype = training_dtype(options.dtype, device, base, precision, options.batch_tokens)
    check_quantization(options.quantization, device)
    rows = usable_rows(train, objective)
    batches = Batches(rows, objective.width, options.batch_bounds, options.seed).per_epoch
    steps, epochs = batches * options.epochs, float(options.epochs)
    if options.max_steps is not None and options.max_steps < steps:
        epochs *= options.max_steps / steps
        steps = options.max_steps
    parting = _parting(options, rows, device, dtype, parameters, shape)
    passes = objective.passes + _RECOMPUTED * parting.activation_checkpointing
    speed = matrix_flops(device, dtype) * _EFFICIENCY
    return Plan(
        device=device,
        dtype=dtype,
        threads=threads,
        batches_per_epoch=batches,
        steps=steps,
        tokens=int(sum(map(objective.tokens, rows)) * epochs),
        tokens_per_second=speed / (_FLOPS_A_TOKEN_AND_PARAMETER * passes * parameters),
        micro_batch_tokens=parting.micro_batch_tokens,
        activation_checkpointing=parting.activation_checkpointing,
    )


def _parting(
    options: Training,
    rows: Sequence[Row],
    device: str,
    dtype: str,
    parameters: int,
    shape: Shape | None,
) -> Parting:
    """What the recipe says of memory; what it leaves open follows from what fits."""
    found = Parting(None, activation_checkpointing=False)
    if shape is not None and rows:
        objective = objective_of(options)
        longest = max(map(objective.width, rows))
        batch = options.batch_size * longest if options.batch_size else options.batch_tokens
        load = Load(batch, longest)
        weights = parameters * BYTES[dtype]
        if options.quantization != "none":
            weights = quantized_bytes(parameters, shape)
        place = Place(device, kept_dtype(dtype, options.quantization), memory_bytes(device))
        found = part(shape, load, place, weights)
    tokens, checkpointing = options.micro_batch_tokens, options.activation_checkpointing
    return Parting(
        found.micro_batch_tokens if tokens is None else tokens,
        found.activation_checkpointing if checkpointing == "auto" else checkpointing == "on",
    )


@cache
def matrix_flops(device: str, dtype: str) -> float:
    """Floating-point operations a second in a matrix product, measured once in about 0.2 s."""
    size, budget_s = 768 if device == "cpu" else 4096, 0.2
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    torch.mm(matrix, matrix)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < budget_s or done == 0:
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        done += 1
    return done * 2.0 * size**3 / max(elapsed, 1e-9)


@dataclass(frozen=True, slots=True)
class Job:
    """All that training needs to know."""

    recipe: Recipe
    prepared: Prepared
    base: Base
    plan: Plan
    folder: Path
    """The run's own."""
    start: Path | None = None
    """The weights that the adapter begins with, where they are not fresh."""
