"""vLLM's LoRA arithmetic on CPU, corrected and made fast; installed in every vLLM process.

In vLLM 0.32 the CPU functions take the weights of row `index[token]` for each token. A
token of the base model has index -1, which is the last slot: as soon as that slot is
filled, base requests in a step beside adapters are answered with its adapter. And the
weights are copied once a token, which makes prompts slow.

Here rows are grouped by adapter, each group is one matrix product with the weights where
they lie, and rows of the base get nothing. A step of base rows alone does no LoRA work.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NO_ADAPTER = -1

Groups = list[tuple[int, "slice | Tensor"]]
"""Slot, and which rows of the step use it."""


def group_rows(indices: Tensor) -> Groups:
    """Rows by slot. `indices`: [B], -1 for the base model."""
    listed = indices.tolist()
    slots = set(listed)
    slots.discard(NO_ADAPTER)
    if len(slots) == 1 and NO_ADAPTER not in listed:
        return [(listed[0], slice(0, len(listed)))]
    groups: Groups = []
    for slot in sorted(slots):
        rows = [row for row, value in enumerate(listed) if value == slot]
        if rows[-1] - rows[0] + 1 == len(rows):
            groups.append((slot, slice(rows[0], rows[-1] + 1)))
        else:
            groups.append((slot, torch.tensor(rows)))
    return groups


def add_linear(
    output: Tensor,
    inputs: Tensor,
    slices: Iterable[tuple[Tensor, Tensor, int]],
    scaling: float,
    groups: Groups,
) -> None:
    """output[rows] += scaling * inputs[rows] @ A^T @ B^T by group, for each slice of a layer.

    Args:
        output: [B, wide], changed in place.
        inputs: [B, in].
        slices: A and B matrices of all slots, [slots, (1,) R, in] and [slots, (1,) out, R], and
            the columns that the slice has in the output; slices stand side by side.
        scaling: factor of the product.
        groups: rows by slot.
    """
    offset = 0
    for a, b, width in slices:
        for slot, rows in groups:
            chosen, first, second = inputs[rows], _weights(a, slot), _weights(b, slot)[:width]
            columns = slice(offset, offset + second.shape[0])
            if isinstance(rows, slice) and output.dtype == chosen.dtype == first.dtype:
                output[rows, columns].addmm_(chosen @ first.T, second.T, alpha=scaling)
            else:
                small = (chosen.to(first.dtype) @ first.T) * scaling
                output[rows, columns] += (small @ second.T).to(output.dtype)
        offset += width


def _weights(stacked: Tensor, slot: int) -> Tensor:
    """One slot's matrix, [out, in]; the stack is [slots, out, in] or [slots, 1, out, in]."""
    weight = stacked[slot]
    return weight[0] if weight.dim() == 3 else weight


def install() -> None:
    """Change vLLM's class for CPU; other platforms have kernels of their own."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper: Any = PunicaWrapperCPU
    if hasattr(wrapper, "row_groups"):
        return
    update = wrapper.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; a step's some hundred products share the groups made here."""
        update(self, *args, **kwargs)
        self.row_groups = group_rows(self.token_lora_indices)

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
        if self.row_groups:  # a step of the base alone pays nothing
            output, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            slices = zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True)
            add_linear(output, inputs, slices, scale, self.row_groups)

    wrapper.row_groups = []
    wrapper.update_metadata = update_metadata
    wrapper.add_lora_linear = add_lora_linear
