"""When training has gone wrong: a loss that is no number, or one that was better before.

A loss tells of the weights before its step. So a checkpoint is known to be good only after
the next step's loss was seen.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from adapters.errors import AdapterError
from finetune.batching import Batches
from finetune.checkpoint import drop_after, load_checkpoint, path_of
from finetune.objectives import Objective

WINDOW = 20
"""Steps whose median loss is looked at: one odd batch says nothing, and a spike passes."""


class Diverged(AdapterError):
    """The loss or its gradient is no finite number, or training made the model worse."""

    code = "training_diverged"


def clearly_above(loss: float, level: float) -> bool:
    """Whether a loss, in nats, is above a level by more than batches differ."""
    return loss > 1.5 * level + 0.5


def _near(loss: float, level: float) -> bool:
    return loss <= 1.1 * level + 0.1


class Watch:
    """Follows the losses and remembers the last checkpoint at which all was well.

    It depends on nothing but the losses, so a resumed run judges as one that was not stopped.

    Args:
        every: steps between checkpoints. Those where a run was stopped are left aside.
    """

    def __init__(self, every: int) -> None:
        self.good_step = 0
        self._every = every
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf
        self._silent_until = 0

    def see(self, step: int, loss: float) -> bool:
        """Take note of the loss of a step, counted from 1.

        Returns:
            Whether the last steps are clearly worse than the best ones before. They may just
            have been harder: compare them with an earlier adapter on the same batches.
        """
        self._recent.append(loss)
        self._lowest = min(self._lowest, self.level)
        well = _near(self.level, self._lowest) and not clearly_above(loss, self._lowest)
        if well and (step - 1) % self._every == 0:
            self.good_step = step - 1
        full = len(self._recent) == WINDOW and step >= self._silent_until
        return full and clearly_above(self.level, self._lowest)

    @property
    def level(self) -> float:
        """Median loss of the last steps."""
        return statistics.median(self._recent)

    def accept(self, step: int) -> None:
        """Say that the last steps were only harder; what was best stays what it was.

        Else a slow rise would be taken for one hard stretch after the other.
        """
        self._silent_until = step + 2 * WINDOW


class Guard:
    """Ends training that has gone wrong, and leaves the last good checkpoint.

    Args:
        checkpoints: their folder.
        every: steps between checkpoints.
    """

    def __init__(
        self, checkpoints: Path, every: int, objective: Objective, batches: Batches
    ) -> None:
        self._checkpoints, self._watch = checkpoints, Watch(every)
        self._objective, self._batches = objective, batches

    @property
    def good_step(self) -> int:
        """Steps done at the last checkpoint at which all was well, or 0."""
        return self._watch.good_step

    def replay(self, entries: Iterable[dict[str, Any]]) -> None:
        """Take note of steps that an earlier process did."""
        for entry in entries:
            if self._watch.see(entry["step"], entry["loss"]):
                self._watch.accept(entry["step"])  # else the run had ended there

    def judge(self, model: Any, step: int, loss: float, rate: float) -> None:
        """Look at the loss of a step, counted from 1.

        Raises:
            Diverged: it is no finite number, or the last steps were worse than they need be.
        """
        at = f"at step {step} (learning rate {rate:.3g})"
        if not math.isfinite(loss):
            raise self._diverged(f"the loss or its gradient became {loss} {at}")
        if not self._watch.see(step, loss):
            return
        level, before = self._watch.level, self._earlier_level(model, step)
        if clearly_above(level, before):
            raise self._diverged(
                f"the loss diverged {at}: {level:.3g} over the last {WINDOW} steps, {before:.3g} "
                "on the same batches with the weights from before"
            )
        self._watch.accept(step)

    def check_finite(self, model: Any) -> None:
        """Look at the weights of the last step, which no later loss tells of.

        Raises:
            Diverged: some are no finite numbers.
        """
        if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
            raise self._diverged("the last step left weights that are no numbers")

    def _earlier_level(self, model: Any, step: int) -> float:
        """Median loss on the last batches with the last good checkpoint, else with the base."""
        batches = [self._batches.at(number) for number in range(step - WINDOW, step)]
        good = path_of(self._checkpoints, self.good_step)
        if not good.is_dir():
            return statistics.median(self._objective.of_base(model, batch) for batch in batches)
        now = get_peft_model_state_dict(model, save_embedding_layers=False)
        now = {name: tensor.detach().clone() for name, tensor in now.items()}
        set_peft_model_state_dict(model, load_checkpoint(good).adapter)
        with torch.no_grad():
            losses = [self._objective.losses(model, batch).values.mean() for batch in batches]
        set_peft_model_state_dict(model, now)
        return statistics.median(map(float, losses))

    def _diverged(self, problem: str) -> Diverged:
        """The error, after dropping the checkpoints that are spoiled."""
        left = drop_after(self._checkpoints, self.good_step)
        kept = "none was saved before"
        if left:
            kept = f"the checkpoint {left[-1].name} from before is kept"
        return Diverged(
            f"{problem}; {kept}",
            hint="lower training.learning_rate or raise training.warmup_ratio; "
            "with bfloat16, try training.dtype=float32",
        )
