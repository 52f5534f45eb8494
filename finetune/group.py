"""The workers that train one adapter together, as one of them sees them.

Each step's batch is shared out; every worker computes the gradients of its rows, their sum moves
the same weights everywhere. The first worker leads: it alone writes, judges and decides whether
another step comes. The others follow its word.
"""

from typing import Any

import torch
import torch.distributed as dist

from finetune.data import Row

_END = -1


class Group:
    """One worker alone, which shares with nobody."""

    rank = 0
    size = 1

    def share(self, batch: list[Row]) -> list[Row]:
        """This worker's rows of a batch. They come by length, so all get alike much work."""
        return batch[self.rank :: self.size]

    def begin(self, step: int) -> None:
        """Tell the others which step comes, counted from 0; the leader says it."""

    def end(self) -> None:
        """Tell the others that no step comes any more."""

    def add_up(self, weights: list[Any], totals: dict[str, float]) -> None:
        """Sum the weights' gradients and the totals over the workers, in place."""


ALONE = Group()


class Workers(Group):
    """One of several processes of an initialised process group.

    Args:
        device: where tensors must be to be sent: the GPU with NCCL.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device

    def begin(self, step: int) -> None:
        self._broadcast(step)

    def end(self) -> None:
        self._broadcast(_END)

    def next_step(self) -> int | None:
        """Wait for the leader's word: the step that comes, or None."""
        step = self._broadcast(_END)
        return None if step == _END else step

    def add_up(self, weights: list[Any], totals: dict[str, float]) -> None:
        for weight in weights:
            if weight.grad is None:  # a batch of fewer rows than workers
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        figures = torch.tensor(list(totals.values()), device=self._device)
        message = torch.cat([part.flatten().float() for part in (*gradients, figures)])
        dist.all_reduce(message)
        sizes = [part.numel() for part in (*gradients, figures)]
        *sums, figures = message.split(sizes)
        for gradient, found in zip(gradients, sums, strict=True):
            gradient.copy_(found.view_as(gradient))
        totals.update(zip(totals, figures.tolist(), strict=True))

    def _broadcast(self, number: int) -> int:
        """The leader's number, on every worker."""
        sent = torch.tensor([number], device=self._device)
        dist.broadcast(sent, src=0)
        return int(sent.item())
