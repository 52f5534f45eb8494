"""Checkpoints of a run: adapter, optimiser and step, written whole or not at all.

    checkpoints/step-00000050/{adapter.safetensors, optimizer.pt, position.json}

Batches, learning rate and randomness follow from the recipe and the step, so no more is
needed. They are read from the run's own folder only, with loaders that run no code.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.digests import sync_file
from adapters.errors import InvalidInput

_KEEP = 2


@dataclass(slots=True)
class Checkpoint:
    """Everything that decides how training goes on."""

    step: int
    """Steps done."""
    adapter: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint beside its place, rename it, and drop all but the last two."""
    target = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: value.detach().contiguous() for name, value in checkpoint.adapter.items()}
    save_file(tensors, partial / "adapter.safetensors")
    torch.save(checkpoint.optimizer, partial / "optimizer.pt")
    (partial / "position.json").write_text(json.dumps({"step": checkpoint.step}) + "\n")
    for path in partial.iterdir():
        sync_file(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    for old in checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InvalidInput: it is damaged.
    """
    try:
        return Checkpoint(
            step=json.loads((path / "position.json").read_text())["step"],
            adapter=load_file(path / "adapter.safetensors"),
            optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
        )
    except Exception as error:  # the loaders raise many kinds; each means a damaged file
        raise InvalidInput(
            f"checkpoint {path.name} can't be read: {error}",
            hint="delete its folder to resume from the one before, or start without --resume",
        ) from error
