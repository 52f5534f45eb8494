"""Checkpoints of a run: adapter, optimiser and step, written whole or not at all.

    checkpoints/step-00000050/{adapter.safetensors, optimizer.pt, position.json}
                              best.safetensors, where a recipe chooses by a figure

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
class Best:
    """The best adapter so far by a figure on held-out examples."""

    value: float
    step: int
    waited: int
    """Measurements since then, none of them better."""
    adapter: dict[str, Tensor]


@dataclass(slots=True)
class Checkpoint:
    """Everything that decides how training goes on."""

    step: int
    """Steps done."""
    adapter: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: Best | None = None


class Interrupted(Exception):
    """Training was asked to stop and left a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(step)  # all that a copy in another process is made of
        self.step = step

    def __str__(self) -> str:
        return f"stopped after step {self.step}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint, good_step: int) -> Path:
    """Write a checkpoint beside its place, rename it, and drop old ones.

    Args:
        good_step: the last checkpoint at which all was well; it is kept with the last two.
    """
    target = path_of(folder, checkpoint.step)
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: value.detach().contiguous() for name, value in checkpoint.adapter.items()}
    save_file(tensors, partial / "adapter.safetensors")
    torch.save(checkpoint.optimizer, partial / "optimizer.pt")
    position: dict[str, Any] = {"step": checkpoint.step}
    if (best := checkpoint.best) is not None:
        save_file(best.adapter, partial / "best.safetensors")
        position["best"] = {"value": best.value, "step": best.step, "waited": best.waited}
    (partial / "position.json").write_text(json.dumps(position) + "\n")
    for path in partial.iterdir():
        sync_file(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    for old in checkpoints(folder)[:-_KEEP]:
        if old != path_of(folder, good_step):
            shutil.rmtree(old)
    return target


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def drop_after(folder: Path, step: int) -> list[Path]:
    """Remove the checkpoints after a step; returns those that are left."""
    for path in checkpoints(folder):
        if path > path_of(folder, step):
            shutil.rmtree(path)
    return checkpoints(folder)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InvalidInput: it is damaged.
    """
    try:
        position = json.loads((path / "position.json").read_text())
        best = position.get("best")
        return Checkpoint(
            step=position["step"],
            adapter=load_file(path / "adapter.safetensors"),
            optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
            best=None if best is None else Best(
                **best, adapter=load_file(path / "best.safetensors")
            ),
        )  # fmt: skip
    except Exception as error:  # the loaders raise many kinds; each means a damaged file
        raise InvalidInput(
            f"checkpoint {path.name} can't be read: {error}",
            hint="delete its folder to resume from the one before, or start without --resume",
        ) from error
