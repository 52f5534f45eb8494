"""vLLM's LoRA arithmetic on CPU, corrected and made fast; installed in every vLLM process.

In vLLM 0.32 the CPU functions take the weights of row `index[token]` for each token. A
token of the base model has index -1, which is the last slot: as soon as that slot is
filled, base requests in a step beside adapters are answered with its adapter. And the
weights are copied once a token, which makes prompts slow.

Here rows are grouped by adapter, each group is one matrix product with the weights where
they lie, and rows of the base get nothing.
"""

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


def _weights(stacked: Tensor, slot: int, dtype: torch.dtype) -> Tensor:
    """One slot's matrix, [out, in]; the stack is [slots, out, in] or [slots, 1, out, in]."""
    weight = stacked[slot]
    if weight.dim() == 3:
        weight = weight[0]
    return weight.to(dtype)


def shrink(inputs: Tensor, stacked: Tensor, output: Tensor, groups: Groups, scaling: float) -> None:
    """output[:, :R] = scaling * inputs @ A^T by group; rows of the base become zero."""
    inputs = inputs.to(output.dtype)
    rank = stacked.shape[-2]
    output[:, :rank] = 0
    for slot, rows in groups:
        product = inputs[rows] @ _weights(stacked, slot, output.dtype).T
        output[rows, :rank] = product * scaling


def expand(
    inputs: Tensor, stacked: Tensor, output: Tensor, groups: Groups, *, offset: int, add: bool
) -> None:
    """output[:, offset:] += inputs @ B^T by group; without `add`, replaced.

    Args:
        inputs: [B, R].
        stacked: B matrices of all slots, [slots, (1,) out, R].
        output: [B, wide], changed in place.
        groups: rows by slot.
        offset: first column.
        add: whether the product is added to what stands there.
    """
    inputs = inputs.to(output.dtype)
    width = min(stacked.shape[-2], output.shape[1] - offset)
    columns = slice(offset, offset + width)
    if not add:
        output[: inputs.shape[0], columns] = 0
    for slot, rows in groups:
        product = inputs[rows] @ _weights(stacked, slot, output.dtype)[:width].T
        output[rows, columns] += product


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

    def shrink_step(self: Any, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        shrink(x, w_t_all, y, self.row_groups, scale)

    def expand_step(self: Any, y: Tensor, x: Tensor, w_t_all: Tensor, add_inputs: bool) -> None:
        expand(x, w_t_all, y, self.row_groups, offset=0, add=add_inputs)

    def expand_slice_step(
        self: Any,
        y: Tensor,
        x: Tensor,
        w_t_all: Tensor,
        y_offset: int,
        _size: int,
        add_inputs: bool,
    ) -> None:
        expand(x, w_t_all, y, self.row_groups, offset=y_offset, add=add_inputs)

    wrapper.row_groups = []
    wrapper.update_metadata = update_metadata
    wrapper._shrink_prefill = wrapper._shrink_decode = shrink_step
    wrapper._expand_prefill = wrapper._expand_decode = expand_step
    wrapper._expand_slice_prefill = wrapper._expand_slice_decode = expand_slice_step
