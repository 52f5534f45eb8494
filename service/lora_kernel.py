"""The compiled loop of `service.lora_ops`: few rows a slot, many slots."""

from typing import Any

import numpy as np
from numba import njit


# sums in any order, as BLAS does
@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def add_rows(  # noqa: PLR0913, PLR0917  # numba takes arrays and numbers
    output: Any,
    inputs: Any,
    first: Any,
    second: Any,
    rows: Any,
    slots: Any,
    ranks: Any,
    offset: Any,
    width: Any,
    scaling: Any,
) -> None:  # pragma: no cover  # runs as machine code
    """output[row] += scaling * inputs[row] @ A^T @ B^T, each row with its slot's A and B.

    Args:
        output: [B, wide] float32, changed in place from column `offset` on.
        inputs: [B, in] float32.
        first: A of all slots, [slots, R, in].
        second: B of all slots, [slots, out, R].
        rows: [N], those of one slot side by side, so that its weights stay in the cache.
        slots: [N], the slot of each.
        ranks: [slots], how many of the R are in use.
        offset: first column.
        width: columns, at most `out`.
        scaling: factor.
    """
    hidden = np.empty(first.shape[1], np.float32)
    for position in range(rows.shape[0]):
        row, slot = rows[position], slots[position]
        rank = ranks[slot]
        for k in range(rank):
            total = np.float32(0)
            for i in range(inputs.shape[1]):
                total += first[slot, k, i] * inputs[row, i]
            hidden[k] = total * scaling
        for column in range(width):
            total = np.float32(0)
            for k in range(rank):
                total += second[slot, column, k] * hidden[k]
            output[row, offset + column] += total
