"""Losses without all logits at once are those of the plain projection, and so are gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune import projection
from finetune.projection import token_losses

TOKENS, HIDDEN, VOCABULARY = 2 * projection.tokens_at_once("cpu") + 5, 16, 300


def losses_and_slopes(
    head: torch.nn.Module, compute: str, weights: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [N], and the gradient [N, H] of their weighted sum, one of the two ways."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    if compute == "ours":
        losses = token_losses(model, states, targets)
    else:
        losses = cross_entropy(head(states).float(), targets, reduction="none")
    (slopes,) = torch.autograd.grad((losses * weights).sum(), states)
    return losses.detach(), slopes


@pytest.fixture
def head() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_losses_and_gradients_equal_those_of_all_logits(
    head: torch.nn.Linear, dtype: torch.dtype, close: float
) -> None:
    weights = torch.linspace(-1, 2, TOKENS)  # preferences weigh tokens, also below zero
    ours = losses_and_slopes(head.to(dtype), "ours", weights, dtype)
    plain = losses_and_slopes(head.to(dtype), "plain", weights, dtype)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close)


def test_a_head_that_learns_or_adds_gets_all_its_gradients() -> None:
    torch.manual_seed(1)
    head = torch.nn.Linear(HIDDEN, VOCABULARY)
    losses, _ = losses_and_slopes(head, "ours", torch.ones(TOKENS))
    plain, _ = losses_and_slopes(head, "plain", torch.ones(TOKENS))
    assert torch.equal(losses, plain)
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    token_losses(model, torch.ones(2, HIDDEN), torch.tensor([1, 2])).sum().backward()
    assert head.weight.grad is not None
    assert head.bias.grad is not None


def test_no_gradients_are_made_when_none_are_asked_for(
    head: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    made: list[int] = []
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: made.append(len(x)) or empty_like(x))
    with torch.no_grad():
        token_losses(model, torch.ones(2, HIDDEN), torch.tensor([1, 2]))
    assert made == []
    token_losses(model, torch.ones(2, HIDDEN), torch.tensor([1, 2]))
    assert made == [2]


def test_no_tokens_have_no_losses(head: torch.nn.Linear) -> None:
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    assert token_losses(model, torch.ones(0, HIDDEN), torch.tensor([], dtype=torch.long)).shape == (
        0,
    )
