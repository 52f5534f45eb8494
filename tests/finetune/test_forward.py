"""Sharing the common beginning and projecting few positions change no result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from adapters.bases import Base
from finetune import forward
from finetune.base_model import load_model
from finetune.config import Recipe
from finetune.data import Row
from finetune.train import attach_lora


@pytest.fixture
def model(base: Base, make_recipe: Callable[..., Recipe]) -> Any:
    """The tiny base with a LoRA that has an effect."""
    torch.manual_seed(1)
    wrapped = attach_lora(load_model(base.path, "float32", "cpu"), make_recipe(), "tiny")
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    return wrapped


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    """Forty tokens that all share, then answers of different lengths."""
    shared = [5 + (7 * n) % 400 for n in range(40)]
    ends = ([9, 8, 7], [9, 8], [30, 31, 32, 33, 34, 35], [77])
    return [
        make_row([*shared, n + 50, *end], list(range(41, 41 + len(end))))
        for n, end in enumerate(ends)
    ]


def plain_losses(model: Any, rows: list[Row]) -> torch.Tensor:
    """One row at a time, with all logits."""
    parts = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        losses = cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
        parts.append(losses[torch.tensor(row.supervised) - 1])
    return torch.cat(parts)


def gradients(model: Any, losses: torch.Tensor) -> list[torch.Tensor]:
    weights = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(losses.mean(), weights))


def test_losses_and_gradients_equal_those_of_plain_full_logits(model: Any, rows: list[Row]) -> None:
    losses, owners = forward.supervised_losses(model, rows)
    plain = plain_losses(model, rows)

    assert forward.run(forward.inner_model(model), [r.ids for r in rows], 40).start == 40
    assert owners.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3]
    torch.testing.assert_close(losses, plain, rtol=1e-4, atol=1e-4)
    expected = gradients(model, plain)
    for ours, theirs in zip(gradients(model, losses), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert all(gradient.abs().max() > 1e-4 for gradient in expected)


def test_a_token_supervised_inside_the_shared_part_is_not_lost(
    model: Any, make_row: Callable[..., Row]
) -> None:
    shared = list(range(10, 60))
    rows = [make_row([*shared, n], [1, 20, 50]) for n in (3, 4, 5)]
    losses, _ = forward.supervised_losses(model, rows)
    torch.testing.assert_close(losses, plain_losses(model, rows), rtol=1e-4, atol=1e-4)


def test_states_and_cache_do_not_depend_on_who_shares_the_batch(
    model: Any, rows: list[Row]
) -> None:
    inner = forward.inner_model(model)
    ids = [row.ids for row in rows]
    together = forward.run(inner, ids, 41, keep_cache=True)
    assert together.start > 0
    for number, row in enumerate(ids):
        alone = forward.run(inner, [row], 41, keep_cache=True)
        last = len(row) - 1
        torch.testing.assert_close(
            together.states[number, last - together.start], alone.states[0, last], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            together.cache.layers[1].keys[number, :, : len(row)],
            alone.cache.layers[1].keys[0],
            atol=1e-4,
            rtol=0,
        )


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_the_common_prefix_is_the_longest_allowed(rows: list[list[int]], limit: int) -> None:
    found = forward.common_prefix(rows, limit)
    assert all(row[:found] == rows[0][:found] for row in rows)
    assert found <= limit
    assert found < min(map(len, rows))
    longer = found + 1
    assert (
        longer > limit
        or longer >= min(map(len, rows))
        or any(row[:longer] != rows[0][:longer] for row in rows)
    )


def test_on_a_gpu_a_common_beginning_is_shared_when_that_saves_much(model: Any) -> None:
    inner = forward.inner_model(model)
    assert forward._worthwhile_tokens(inner, "cpu") == 96
    layer = 4 * 64 * 64 + 3 * 64 * 128
    assert forward._worthwhile_tokens(inner, "cuda") * layer == pytest.approx(5e11)


def test_a_model_that_changes_its_logits_is_noticed(model: Any) -> None:
    assert forward.projection_is_plain(model, [1, 2, 3])
    causal = model.get_base_model()
    whole = causal.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    causal.forward = capped
    assert not forward.projection_is_plain(model, [1, 2, 3])
