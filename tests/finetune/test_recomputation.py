"""What is computed again changes no gradient, not in the last digit, and takes less memory."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama.modeling_llama import LlamaMLP

from adapters.bases import Base
from finetune import recomputation
from finetune.base_model import load_model
from finetune.config import Recipe
from finetune.data import Row
from finetune.forward import supervised_losses
from finetune.recomputation import recompute_elementwise
from finetune.train import attach_lora

Make = Callable[..., Any]


@pytest.fixture
def make_model(base: Base, make_recipe: Callable[..., Recipe]) -> Make:
    """The tiny base with a LoRA that has an effect; `dropout` is the LoRA's."""

    def make(dtype: str = "float32", dropout: float = 0.0) -> Any:
        recipe = make_recipe(lora={"r": 4, "alpha": 8, "dropout": dropout})
        torch.manual_seed(1)
        model = attach_lora(load_model(base.path, dtype, "cpu"), recipe, "tiny")
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, 0.05)
        return model.train()

    return make


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    """Long enough that their common beginning goes through alone, with a cache."""
    shared = [5 + (7 * n) % 400 for n in range(60)]
    return [make_row([*shared, n + 50, 9, 8, 7], [61, 62, 63]) for n in range(4)]


def gradients(model: Any, rows: list[Row]) -> list[Tensor]:
    torch.manual_seed(3)
    losses, _ = supervised_losses(model, rows)
    weights = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(losses.mean(), weights))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_equal_to_the_last_bit(
    make_model: Make, rows: list[Row], dtype: str, dropout: float
) -> None:
    plain = gradients(make_model(dtype, dropout), rows)
    model = make_model(dtype, dropout)
    recompute_elementwise(model)
    ours = gradients(model, rows)
    assert all(torch.equal(*pair) for pair in zip(plain, ours, strict=True))
    again = gradients(model, rows)  # nothing is left of the first time
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


def kept_bytes(model: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> int:
    """What the graph keeps between the passes, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def look(found: Any) -> Any:
        if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in weights:
            kept[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        return found

    pack = recomputation.Kept.pack
    with monkeypatch.context() as patch, saved_tensors_hooks(look, lambda tensor: tensor):
        patch.setattr(recomputation.Kept, "pack", lambda self, tensor: look(pack(self, tensor)))
        losses, _ = supervised_losses(model, rows)  # held, so that no address is used twice
    del losses
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass(
    make_model: Make, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = kept_bytes(make_model(), rows, monkeypatch)
    model = make_model()
    recompute_elementwise(model)
    assert kept_bytes(model, rows, monkeypatch) < 0.75 * plain


def test_what_is_computed_again_is_let_go_of(
    make_model: Make, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    spared: list[weakref.ref[Tensor]] = []
    spare = recomputation.Kept.spare

    def watched(self: Any, tensor: Tensor, compute: Callable[[], Tensor]) -> None:
        spared.append(weakref.ref(tensor))
        spare(self, tensor, compute)

    monkeypatch.setattr(recomputation.Kept, "spare", watched)
    model = make_model()
    recompute_elementwise(model)
    losses, _ = supervised_losses(model, rows)
    assert len(spared) >= 8  # two norms and two of the MLP, in each of two layers
    assert [one for one in spared if one() is not None] == []
    losses.sum().backward()


def test_an_mlp_that_does_more_than_its_parts_say_is_left_alone(
    make_model: Make, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, states: 0.5 * plain(self, states))
    expected = gradients(make_model(), rows)
    model = make_model()
    recompute_elementwise(model)
    found = gradients(model, rows)
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_nothing_changes_where_no_gradient_is_asked_for(make_model: Make, rows: list[Row]) -> None:
    model = make_model()
    with torch.no_grad():
        plain, _ = supervised_losses(model, rows)
        recompute_elementwise(model)
        ours, _ = supervised_losses(model, rows)
    assert torch.equal(plain, ours)
