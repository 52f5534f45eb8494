"""vLLM's LoRA arithmetic on CPU, corrected and made fast; installed in every vLLM process.

In vLLM 0.32 the CPU functions take the weights of row `index[token]` for each token. A
token of the base model has index -1, which is the last slot: as soon as that slot is
filled, base requests in a step beside adapters are answered with its adapter. And the
weights are copied once a token, which makes prompts slow.

Here rows are grouped by adapter. A group of many rows (a prompt) is one matrix product with
the weights where they lie; groups of few rows (answers) go through a compiled loop, since
with many adapters the calls would cost more than the arithmetic. Both read as many rows of a
slot as its adapter has ranks. Rows of the base get nothing, and a step of base rows alone
does no LoRA work.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_ADAPTER = -1
FEW_ROWS = 16
"""Groups with fewer go through the compiled loop."""

Groups = list[tuple[int, "slice | Tensor"]]
"""Slot, and which rows of the step use it."""


@dataclass(slots=True)
class Rows:
    """A step's rows by slot."""

    groups: Groups = field(default_factory=list)
    """All of them."""
    large: Groups = field(default_factory=list)
    """Those with many rows."""
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
        if len(rows) >= FEW_ROWS:
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
        self.second = b.view(b.shape[0], *b.shape[-2:])
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
            found = self.first[slot, :rank].T, self.second[slot, :, :rank].T
            self._turned[slot] = found
        return found

    def note_rank(self, slot: int, rank: int) -> None:
        """An adapter fills so many rows of a slot from now on."""
        self.ranks[slot] = min(rank, self.first.shape[1])
        self._turned.pop(slot, None)


_stacks: dict[int, Stack] = {}
"""By the identity of A, which the stack keeps alive: layers stay as long as the process."""


def stack_of(a: Tensor, b: Tensor) -> Stack:
    """The same for the same layer, each time."""
    found = _stacks.get(id(a))
    if found is None:
        found = _stacks[id(a)] = Stack(a, b)
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
        width = min(whole, stack.second.shape[1])  # the last slice may be padded
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
        output[place] += (small @ second).to(output.dtype)


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
    _watch_ranks()


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


def _watch_ranks() -> None:
    """Learn each slot's rank when vLLM fills it."""
    from vllm.lora.layers import base_linear, column_parallel_linear

    for module in (base_linear, column_parallel_linear):
        for layer in vars(module).values():
            if isinstance(layer, type) and "set_lora" in vars(layer):
                setattr(layer, "set_lora", _noting(vars(layer)["set_lora"]))  # noqa: B010  # typed


def _noting(set_lora: Any) -> Any:
    if hasattr(set_lora, "notes_ranks"):  # imported into the other module
        return set_lora

    def noted(self: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        set_lora(self, index, lora_a, lora_b)
        note_ranks(self, index, lora_a)

    noted.notes_ranks = True  # type: ignore[attr-defined]
    return noted
