"""What training makes small: the loss of the answers, or of preferences between two.

The loop knows an objective by what it says of a row, and by the losses of a batch:

    usable   whether there is anything to learn from a row
    width    tokens that it takes in a batch, padding aside
    tokens   tokens that go through the model
    spoken   tokens of the answers that are learned from, which have logits
    units    losses that it gives: one a supervised token, or one a pair
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune.data import Row
from finetune.forward import adapter_off, supervised_losses
from finetune.options import Training
from finetune.spool import where


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses [N] in nats of some rows, and figures [N] to be told beside their mean."""

    values: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """See the module."""

    passes: float
    """Work for a token in multiples of what a supervised one costs."""
    figures: tuple[str, ...]
    """Names of what is told beside the loss."""

    def usable(self, row: Row) -> bool: ...
    def width(self, row: Row) -> int: ...
    def tokens(self, row: Row) -> int: ...
    def spoken(self, row: Row) -> int: ...
    def units(self, row: Row) -> int: ...
    def losses(self, model: Any, rows: list[Row]) -> Losses: ...
    def of_base(self, model: Any, rows: list[Row]) -> float:
        """Mean loss of the base model without its adapter."""


def objective_of(options: Training) -> Objective:
    return Preferences(options.beta) if options.method == "dpo" else Answers()


def usable_rows(rows: Sequence[Row], objective: Objective) -> Sequence[Row]:
    return where(rows, objective.usable)


class Answers:
    """Cross-entropy of every supervised token."""

    passes = 1.0
    figures: tuple[str, ...] = ()

    def usable(self, row: Row) -> bool:
        return bool(row.supervised)

    def width(self, row: Row) -> int:
        return len(row.ids)

    def tokens(self, row: Row) -> int:
        return len(row.ids)

    def spoken(self, row: Row) -> int:
        return len(row.supervised)

    def units(self, row: Row) -> int:
        return len(row.supervised)

    def losses(self, model: Any, rows: list[Row]) -> Losses:
        return Losses(supervised_losses(model, rows)[0])

    def of_base(self, model: Any, rows: list[Row]) -> float:
        with torch.no_grad(), adapter_off(model):
            return float(self.losses(model, rows).values.mean())


class Preferences:
    """Direct preference optimisation, DPO (Rafailov et al. 2023, equation 7).

    The reference is the base model, which is what is left with the adapter off. It goes
    through the same batch as the adapter, so that rounding is the same on both sides: as
    long as the adapter changes nothing, the loss is ln 2 to the last digit.
    """

    passes = 1.5
    """The reference's forward pass is half of what a training step costs."""
    figures: tuple[str, ...] = ("reward_accuracy", "reward_margin")

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def usable(self, row: Row) -> bool:
        both = bool(row.supervised) and bool(row.rejected_supervised)
        return both and row.ids != row.rejected_ids  # equal once they were cut

    def width(self, row: Row) -> int:
        return 2 * row.longest

    def tokens(self, row: Row) -> int:
        return len(row.ids) + len(row.rejected_ids)

    def spoken(self, row: Row) -> int:
        return len(row.supervised) + len(row.rejected_supervised)

    def units(self, row: Row) -> int:  # noqa: ARG002 - a pair, whichever
        return 1

    def losses(self, model: Any, rows: list[Row]) -> Losses:
        with torch.no_grad(), adapter_off(model):
            reference = answer_logprobs(model, rows)
        policy = answer_logprobs(model, rows)
        values, margins = dpo_losses(policy, reference, self.beta)
        right = (margins > 0).float()
        return Losses(values, {"reward_accuracy": right, "reward_margin": margins})

    def of_base(self, model: Any, rows: list[Row]) -> float:  # noqa: ARG002 - it prefers neither
        return math.log(2)


def dpo_losses(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Losses [N] and margins of the implicit rewards [N], both in nats.

    Args:
        policy, reference: log-probabilities [2, N] of the preferred answers and of the others.
        beta: how strongly the policy is held to the reference.
    """
    margins = beta * ((policy[0] - policy[1]) - (reference[0] - reference[1]))
    return -logsigmoid(margins), margins.detach()


def answer_logprobs(model: Any, rows: list[Row]) -> Tensor:
    """Log-probabilities [2, N] of the preferred answers and of the others, tokens summed."""
    others = [replace(r, ids=r.rejected_ids, supervised=r.rejected_supervised) for r in rows]
    both = [*rows, *others]
    losses, _ = supervised_losses(model, both)
    parts = losses.split([len(row.supervised) for row in both])
    return -torch.stack([part.sum() for part in parts]).view(2, len(rows))
