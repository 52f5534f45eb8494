"""vLLM's LoRA arithmetic on CPU, corrected and made fast; installed in every vLLM process.

In vLLM 0.32 the CPU functions take the weights of row `index[token]` for each token. A
token of the base model has index -1, which is the last slot: as soon as that slot is
filled, base requests in a step beside adapters are answered with its adapter. And the
weights are copied once a token, which makes prompts slow.

Here rows are grouped by adapter. A large group of a high rank (a long prompt) is one matrix
product with the weights where they lie; all others go through a compiled loop, since calls
would cost more than the arithmetic. Both read as many rows of a slot as its adapter has ranks,
of B too: its memory is laid out by rank, which its shape does not show. Rows of the base get
nothing, and a step of base rows alone does no LoRA work.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_ADAPTER = -1
LOW_RANK, LOOPED = 8, 1024
"""Groups of a higher rank and of as many rows times ranks are a product: it is faster then."""

Groups = list[tuple[int, "slice | Tensor"]]
"""Slot, and which rows of the step use it."""


@dataclass(slots=True)
class Rows:
    """A step's rows by slot."""

    groups: Groups = field(default_factory=list)
    """All of them."""
    large: Groups = field(default_factory=list)
    """Those for which a product is faster than the loop."""
    few: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows of all other groups, those of one slot side by side; and their slots."""
    slots: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def group_rows(indices: Tensor) -> Rows:
    """Rows by slot. `indices`: [B], -1 for the base model."""
    listed = indices.tolist()
    by_slot: dict[int, list[int]] = {}
    for row, slot in enumerate(listed):
        if slot != NO_ADAPTER:
            by_slot.setdefault(slot, []).append(row)
    found = Rows()
    few: list[int] = []
    slots: list[int] = []
    for slot, rows in sorted(by_slot.items()):
        together = rows[-1] - rows[0] + 1 == len(rows)
        group = slot, slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
        found.groups.append(group)
        rank = largest_rank(slot)
        if rank > LOW_RANK and len(rows) * rank >= LOOPED:
            found.large.append(group)
        else:
            few += rows
            slots += [slot] * len(rows)
    found.few, found.slots = np.array(few, np.int64), np.array(slots, np.int64)
    return found


class Stack:
    """The A and B matrices of all slots of one layer's part, and the rank in each slot."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        """`a`: [slots, (1,) R, in]; `b`: [slots, (1,) out, R]."""
        self.a, self.b = a, b
        self.first = a.view(a.shape[0], *a.shape[-2:])
        self.second = b.view(b.shape[0], *b.shape[-2:]).mT  # [slots, R, out]
        self.ranks = np.full(a.shape[0], a.shape[-2], np.int64)
        self.plain = a.dtype == b.dtype == torch.float32
        if self.plain:
            self.first_array, self.second_array = self.first.numpy(), self.second.numpy()
        self._turned: dict[int, tuple[Tensor, Tensor]] = {}

    def turned(self, slot: int) -> tuple[Tensor, Tensor]:
        """A^T [in, r] and B^T [r, out] of a slot, views as wide as its rank."""
        found = self._turned.get(slot)
        if found is None:
            rank = int(self.ranks[slot])
            found = self.first[slot, :rank].T, self.second[slot, :rank]
            self._turned[slot] = found
        return found

    def note_rank(self, slot: int, rank: int) -> None:
        """An adapter fills so many rows of a slot from now on."""
        self.ranks[slot] = min(rank, self.first.shape[1])
        self._turned.pop(slot, None)
        _largest_ranks.pop(slot, None)


_stacks: dict[int, Stack] = {}
"""By the identity of B, which the stack keeps alive: layers stay as long as the process."""

_largest_ranks: dict[int, int] = {}


def largest_rank(slot: int) -> int:
    """Of the adapter in a slot, over all layers."""
    found = _largest_ranks.get(slot)
    if found is None:
        used = (int(stack.ranks[slot]) for stack in _stacks.values() if slot < len(stack.ranks))
        found = _largest_ranks[slot] = max(used, default=0)
    return found


def stack_of(a: Tensor, b: Tensor) -> Stack:
    """The same for the same layer, each time."""
    found = _stacks.get(id(b))
    if found is None:
        found = _stacks[id(b)] = Stack(a, b)
        _largest_ranks.clear()
    return found


def add_linear(
    output: Tensor,
    inputs: Tensor,
    slices: Iterable[tuple[Tensor, Tensor, int]],
    scaling: float,
    rows: Rows,
) -> None:
    """output[rows] += scaling * inputs[rows] @ A^T @ B^T by slot, for each slice of a layer.

    Args:
        output: [B, wide], changed in place.
        inputs: [B, in].
        slices: A and B matrices of all slots, [slots, (1,) R, in] and [slots, (1,) out, R], and
            the columns that the slice has in the output; slices stand side by side.
        scaling: factor of the product.
        rows: by slot.
    """
    plain = output.dtype == inputs.dtype == torch.float32
    looped = len(rows.few) > 0 and plain and output.is_contiguous() and inputs.is_contiguous()
    stacks = [(stack_of(a, b), width) for a, b, width in slices]
    looped = looped and all(stack.plain for stack, _ in stacks)
    groups = rows.large if looped else rows.groups
    chosen = [inputs[group] for _, group in groups]  # shared by the slices
    offset = 0
    for stack, whole in stacks:
        width = min(whole, stack.second.shape[2])  # the last slice may be padded
        if looped:
            kernel()(
                output.numpy(), inputs.numpy(), stack.first_array, stack.second_array,
                rows.few, rows.slots, stack.ranks, offset, width, float(scaling),
            )  # fmt: skip
        columns = slice(offset, offset + width)
        for (slot, group), some in zip(groups, chosen, strict=True):
            first, second = stack.turned(slot)
            _add_group(output, (group, columns), some, (first, second[:, :width]), scaling)
        offset += whole


def _add_group(
    output: Tensor,
    place: "tuple[slice | Tensor, slice]",
    inputs: Tensor,
    turned: tuple[Tensor, Tensor],
    scaling: float,
) -> None:
    first, second = turned
    if isinstance(place[0], slice) and output.dtype == inputs.dtype == first.dtype:
        output[place].addmm_(inputs @ first, second, alpha=scaling)
    else:
        small = (inputs.to(first.dtype) @ first) * scaling
        large = (small @ second).to(output.dtype)
        if isinstance(place[0], slice):
            output[place] += large
        else:
            output[:, place[1]].index_add_(0, place[0], large)


def note_ranks(layer: Any, slot: int, lora_a: "Tensor | list[Tensor | None]") -> None:
    """Remember how many rows of a slot an adapter fills, for each part of a layer."""
    stacked = getattr(layer, "lora_a_stacked", ())
    if any(a.dim() not in {3, 4} for a in stacked):
        return  # another kind of layer, with arithmetic of its own
    parts = lora_a if isinstance(lora_a, list) else [lora_a] * len(stacked)
    for number, (a, b) in enumerate(zip(stacked, layer.lora_b_stacked, strict=True)):
        part = parts[number] if len(parts) == len(stacked) else a[slot].view(a.shape[-2:])
        rank = 0 if part is None else int(part.shape[0])
        stack_of(a, b).note_rank(slot, rank)


def lay_out(layer: Any) -> None:
    """Lay a layer's B matrices, empty yet, out by rank: [slots, 1, R, out] in memory.

    Their shapes stay [slots, 1, out, R], so that vLLM writes to the right place.
    """
    layer.lora_b_stacked = tuple(
        torch.zeros_like(b.mT, memory_format=torch.contiguous_format).mT
        for b in layer.lora_b_stacked
    )


def install() -> None:
    """Change vLLM's class for CPU; other platforms have kernels of their own."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper: Any = PunicaWrapperCPU
    if hasattr(wrapper, "lora_rows"):
        return
    update = wrapper.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; a step's some hundred products share the groups made here."""
        update(self, *args, **kwargs)
        kernel()
        self.lora_rows = group_rows(self.token_lora_indices)

    def add_lora_linear(  # noqa: PLR0913, PLR0917  # vLLM's signature
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_unused: Any,
    ) -> None:
        if self.lora_rows.groups:  # a step of the base alone pays nothing
            output, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            slices = zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True)
            add_linear(output, inputs, slices, scale, self.lora_rows)

    wrapper.lora_rows = Rows()
    wrapper.update_metadata = update_metadata
    wrapper.add_lora_linear = add_lora_linear
    _change_layers()


@cache
def kernel() -> Any:
    """The compiled loop. The first call takes a second or two: vLLM makes it in its warm-up.

    Not imported above: while a worker starts, vLLM looks into every module that is there, and
    numba's do not bear it.
    """
    from service.lora_kernel import add_rows

    ones, index = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    add_rows(ones, ones, ones[None], ones[None], index, index, index, 0, 1, 1.0)
    return add_rows


def _change_layers() -> None:
    """Lay out a layer's weights when vLLM makes them; learn a slot's rank when it is filled."""
    from vllm.lora.layers import base_linear, column_parallel_linear

    for module in (base_linear, column_parallel_linear):
        for layer in vars(module).values():
            if isinstance(layer, type):
                _follow(layer, "create_lora_weights", lambda self, *_: lay_out(self))
                _follow(layer, "set_lora", lambda self, index, a, _: note_ranks(self, index, a))


def _follow(layer: Any, name: str, then: Callable[..., None]) -> None:
    """Do something after a method that the class itself defines."""
    method = vars(layer).get(name)
    if method is None or hasattr(method, "followed"):  # imported into the other module
        return

    def both(self: Any, *args: Any) -> None:
        method(self, *args)
        then(self, *args)

    both.followed = True  # type: ignore[attr-defined]
    setattr(layer, name, both)
