"""From hidden states to the losses of what was said, without all logits at once.

A token's logits are as wide as the vocabulary: with a small model and a large vocabulary they,
their softmax and its gradient would be the largest part of what a training step keeps. A loss
is a sum over tokens, so its gradient for each token's state is found in the forward pass, some
tokens at a time, and only scaled in the backward pass (as Liger's fused linear cross-entropy
does, Hsu et al. 2024, without its Triton kernels).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

_TOKENS_AT_ONCE = {"cpu": 128, "cuda": 512}
"""25 MB of logits on a CPU with a vocabulary of 49,152. Fewer would read the matrix more often
than the products pay for; on a GPU, starting the kernels would take longer than they do."""


def tokens_at_once(device: str) -> int:
    """Tokens that are projected at once."""
    return _TOKENS_AT_ONCE[device]


def project(model: Any, states: Tensor) -> Tensor:
    """Logits [N, V] in float32 of hidden states [N, H]."""
    logits: Tensor = model.get_output_embeddings()(states)
    return logits.float()


def token_losses(model: Any, states: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies [N] in nats of tokens [N], given the hidden states [N, H] that say them."""
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad:
        losses: Tensor = _Losses.apply(states, head.weight, targets, torch.is_grad_enabled())
        return losses
    return cross_entropy(project(model, states), targets, reduction="none")


class _Losses(torch.autograd.Function):  # type: ignore[misc]
    """See the module; the matrix [V, H] is frozen."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, matrix: Tensor, targets: Tensor, learn: bool) -> Tensor:
        losses = torch.empty(len(states), device=states.device)
        slopes = torch.empty_like(states) if learn else None
        step = tokens_at_once(states.device.type)
        for start in range(0, len(states), step):
            some = slice(start, start + step)
            logits = (states[some] @ matrix.T).float()
            wanted = targets[some, None]
            total = logits.logsumexp(-1, keepdim=True)
            losses[some] = (total - logits.gather(1, wanted)).squeeze(1)
            if slopes is not None:
                logits.sub_(total).exp_()
                logits.scatter_add_(1, wanted, -torch.ones_like(total))
                slopes[some] = logits.to(matrix.dtype) @ matrix
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * given[:, None]).to(slopes.dtype), None, None, None
