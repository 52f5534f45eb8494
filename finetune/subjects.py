"""The models that are measured: what each is asked, and how it answers."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from adapters.prompt import Renderer
from finetune.batching import make_batches
from finetune.config import Recipe
from finetune.data import Row
from finetune.forward import supervised_losses
from finetune.generate import greedy
from finetune.labels import label_probabilities

Told = dict[tuple[int, ...], tuple[float, int]]
"""Token ids of a row -> its summed loss in nats and its number of supervised tokens."""


class Asked(Protocol):
    """A model with the examples and labels that it is asked about."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def rows(self) -> list[Row]: ...

    @property
    def labels(self) -> list[str]: ...

    def texts(self, rows: list[Row]) -> list[str]:
        """A greedy answer to each of some rows, without white space around it."""

    def label_probabilities(self) -> list[list[float]]:
        """Of each label for each row, [N][L]."""

    def losses(self, rows: list[Row]) -> tuple[list[float], list[int]] | None:
        """Summed loss in nats and number of supervised tokens of each row; None: not told."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in this process, with an adapter on or off."""

    model: Any
    tokenizer: Any
    recipe: Recipe
    rows: list[Row]
    labels: list[str]

    def texts(self, rows: list[Row]) -> list[str]:
        """As of `Asked`; each may be twice as long as its reference and a little more."""
        renderer = Renderer(self.tokenizer)
        limit = self.recipe.evaluation.max_new_tokens
        context = self.model.config.max_position_embeddings
        caps = []
        for row in rows:
            longest = max(len(renderer.completion_ids(text)) for text in row.references)
            caps.append(max(min(limit, 2 * longest + 16, context - len(row.prompt_ids)), 1))
        answers = greedy(self.model, self.tokenizer, [row.prompt_ids for row in rows], caps)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]

    def label_probabilities(self) -> list[list[float]]:
        prompts = [row.prompt_ids for row in self.rows]
        renderer = Renderer(self.tokenizer)
        table: list[list[float]] = label_probabilities(
            self.model, renderer, prompts, self.labels
        ).tolist()
        return table

    def losses(self, rows: list[Row]) -> tuple[list[float], list[int]]:
        totals = [0.0] * len(rows)
        with torch.inference_mode():
            lengths = [len(row.ids) for row in rows]
            for batch in make_batches(lengths, self.recipe.training.batch_tokens):
                losses, owners = supervised_losses(self.model, [rows[i] for i in batch])
                for loss, owner in zip(losses.tolist(), owners.tolist(), strict=True):
                    totals[batch[owner]] += loss
        return totals, [len(row.supervised) for row in rows]
