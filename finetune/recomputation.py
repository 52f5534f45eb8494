"""What is cheap to compute again isn't kept for the backward pass.

A LoRA matrix keeps its input, and the inputs of most are what a norm or the activation of a
gated MLP gave: element by element, from numbers that are kept as well. So these are thrown away
and computed again when the backward pass asks for them, by the same operations on the same
numbers: gradients are equal to the last bit. Products of matrices are never repeated, unlike
with activation checkpointing. (Selective recomputation, Korthikanti et al. 2022.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from finetune.forward import inner_model

_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""What a gated MLP is made of, as transformers names it."""


class Again:
    """A tensor that is computed when asked for, once for all who keep it."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._keepers = 0
        self._found: Tensor | None = None

    def keep(self) -> None:
        self._keepers += 1

    def give(self) -> Tensor:
        """To one who keeps it; after the last of them it is dropped again."""
        found = self._compute() if self._found is None else self._found
        self._keepers -= 1
        self._found = found if self._keepers > 0 else None
        return found


@dataclass(frozen=True, slots=True)
class _Instead:
    """What the graph keeps instead of a tensor."""

    again: Again
    shape: torch.Size


class Kept:
    """What autograd keeps of one layer's forward pass, and what is to be computed again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Again]] = {}

    def spare(self, tensor: Tensor, compute: Callable[[], Tensor]) -> None:
        # it is held here, so that nothing else gets its address while that is looked up
        self._known[tensor.data_ptr()] = (tensor, Again(compute))

    def forget(self) -> None:
        """Let go of the tensors; the graph still holds `pack`."""
        self._known.clear()

    def pack(self, tensor: Tensor) -> Tensor | _Instead:
        found = self._known.get(tensor.data_ptr())
        if found is None or found[0].numel() != tensor.numel() or not tensor.is_contiguous():
            return tensor
        found[1].keep()
        return _Instead(found[1], tensor.shape)


def _unpack(kept: Tensor | _Instead) -> Tensor:
    return kept.again.give().view(kept.shape) if isinstance(kept, _Instead) else kept


def recompute_elementwise(model: Any) -> None:
    """Let the layers of a model, inside peft's wrapping or not, keep less from now on.

    Norms and gated MLPs are found by how transformers names them; one that computes anything
    else than its parts say keeps all, as before.
    """
    for layer in getattr(inner_model(model), "layers", ()):
        _Spared(layer)


class _Spared:
    """Wraps the forward pass of a layer, of its norms and of its MLP."""

    def __init__(self, layer: Any) -> None:
        self._now: Kept | None = None
        self._wrap(layer, self._whole)
        for part in layer.children():
            if type(part).__name__.endswith("Norm"):
                self._wrap(part, self._norm)
            elif all(hasattr(part, name) for name in _GATED) and _is_plain(part):
                self._wrap(part, self._gated)

    def _wrap(self, module: Any, around: Callable[..., Any]) -> None:
        plain = module.forward

        def forward(*args: Any, **named: Any) -> Any:
            return around(module, plain, *args, **named)

        module.forward = forward

    def _whole(self, _: Any, plain: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **named)
        now = self._now = Kept()
        try:
            with saved_tensors_hooks(now.pack, _unpack):
                return plain(*args, **named)
        finally:
            now.forget()
            self._now = None

    def _norm(self, _: Any, plain: Callable[..., Any], states: Tensor) -> Tensor:
        found: Tensor = plain(states)
        if self._now is not None and states.dtype == torch.float32:  # else its input is not kept
            given = states.detach()
            self._now.spare(found, lambda: plain(given))
        return found

    def _gated(self, mlp: Any, plain: Callable[..., Any], states: Tensor) -> Tensor:
        if self._now is None:
            return plain(states)
        gate, up = mlp.gate_proj(states), mlp.up_proj(states)
        kept_gate, kept_up = gate.detach(), up.detach()
        active = mlp.act_fn(gate)
        self._now.spare(active, lambda: mlp.act_fn(kept_gate))
        product = active * up
        self._now.spare(product, lambda: mlp.act_fn(kept_gate) * kept_up)
        down: Tensor = mlp.down_proj(product)
        return down


def _is_plain(mlp: Any) -> bool:
    """Whether a gated MLP does what its parts say, and no more."""
    weight = mlp.gate_proj.weight
    dtype = weight.dtype if weight.is_floating_point() else torch.float32  # else quantised
    states = torch.linspace(-2, 2, 4 * mlp.gate_proj.in_features, device=weight.device)
    states = states.view(1, 4, -1).to(dtype)
    devices = [weight.device.index] if weight.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # of dropout
        torch.manual_seed(0)
        whole: Tensor = mlp(states)
        torch.manual_seed(0)
        active = mlp.act_fn(mlp.gate_proj(states))
        parts: Tensor = mlp.down_proj(active * mlp.up_proj(states))
    return bool(torch.equal(whole, parts))
