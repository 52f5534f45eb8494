"""Held-out figures in the course of training, and the adapter that was best by one of them."""

import math
from collections import defaultdict
from typing import Any

import torch
from peft import get_peft_model_state_dict

from adapters.errors import InvalidInput
from finetune.base_model import load_tokenizer
from finetune.batching import Batches
from finetune.checkpoint import Best
from finetune.measures import figures
from finetune.metric_names import sign_of
from finetune.objectives import Objective, usable_rows
from finetune.options import BatchBounds
from finetune.plan import Job
from finetune.subjects import Subject

_FROM_LOSSES = ("loss", "reward_accuracy")
"""Figures that come with the validation loss; others are those of the evaluation."""


class Validation:
    """What is measured on the validation examples, if there are any.

    Raises:
        InvalidInput: the recipe chooses by a figure, and no example is left to measure it on.
    """

    def __init__(self, job: Job, objective: Objective) -> None:
        options = job.recipe.training
        self._job, self._objective = job, objective
        rows = usable_rows(job.prepared.of("validation"), objective)
        tokens = job.plan.micro_batch_tokens or options.batch_tokens
        self._batches = Batches(rows, objective.width, BatchBounds(tokens), options.seed)
        self._chosen = options.best_by
        self._tokenizer: Any = None
        if self._chosen is not None and not rows:
            raise InvalidInput(
                "no validation example has anything to measure training.best_by on",
                hint="check data.validation and training.max_length",
                param="training.best_by",
            )

    def __call__(self, model: Any) -> dict[str, float]:
        """Figures of the model as it is now, by their names in metrics.jsonl."""
        if not self._batches.rows:
            return {}
        model.eval()
        try:
            found = self._losses(model)
            if self._chosen is not None and self._chosen not in _FROM_LOSSES:
                found[self._chosen] = self._figure(model, self._chosen)
        finally:
            model.train()
        return {f"validation_{name}": value for name, value in found.items()}

    def better(self, best: Best | None, figures: dict[str, float], model: Any, step: int) -> Best:
        """The best adapter, once the model of this step was measured."""
        value = figures[f"validation_{self._chosen}"]
        sign = sign_of(self._chosen)
        if best is None or (sign * value > sign * best.value) or math.isnan(best.value):
            adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
            copied = {name: tensor.detach().clone() for name, tensor in adapter.items()}
            return Best(value, step, 0, copied)
        return Best(best.value, best.step, best.waited + 1, best.adapter)

    def _losses(self, model: Any) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        units = 0
        with torch.no_grad():
            for batch in self._batches.of(0):
                units += sum(map(self._objective.units, batch))
                losses = self._objective.losses(model, batch)
                for name, values in {"loss": losses.values, **losses.figures}.items():
                    totals[name] += float(values.sum())
        return {name: total / units for name, total in totals.items()}

    def _figure(self, model: Any, name: str) -> float:
        """One of the task's own figures, as the evaluation measures it."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._job.base.path)
        recipe, prepared = self._job.recipe, self._job.prepared
        rows = sorted(prepared.of("validation"), key=lambda row: row.key)
        rows = rows[: recipe.evaluation.max_examples]
        return figures(Subject(model, self._tokenizer, recipe, rows, prepared.labels))[name]
