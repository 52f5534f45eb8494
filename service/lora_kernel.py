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

    Inner loops run over whole rows of the arrays, four at once: so they become vector
    instructions, and a step takes little longer than reading the weights from memory.

    Args:
        output: [B, wide] float32, changed in place from column `offset` on.
        inputs: [B, in] float32.
        first: A of all slots, [slots, R, in].
        second: B^T of all slots, [slots, R, out].
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
        fours = rank - rank % 4
        given = inputs[row]
        for k in range(0, fours, 4):
            a0, a1 = first[slot, k], first[slot, k + 1]
            a2, a3 = first[slot, k + 2], first[slot, k + 3]
            s0 = s1 = s2 = s3 = np.float32(0)
            for i in range(given.shape[0]):
                s0 += a0[i] * given[i]
                s1 += a1[i] * given[i]
                s2 += a2[i] * given[i]
                s3 += a3[i] * given[i]
            hidden[k], hidden[k + 1] = s0 * scaling, s1 * scaling
            hidden[k + 2], hidden[k + 3] = s2 * scaling, s3 * scaling
        for k in range(fours, rank):
            a0 = first[slot, k]
            s0 = np.float32(0)
            for i in range(given.shape[0]):
                s0 += a0[i] * given[i]
            hidden[k] = s0 * scaling
        changed = output[row, offset : offset + width]
        for k in range(0, fours, 4):
            b0, b1 = second[slot, k], second[slot, k + 1]
            b2, b3 = second[slot, k + 2], second[slot, k + 3]
            h0, h1, h2, h3 = hidden[k], hidden[k + 1], hidden[k + 2], hidden[k + 3]
            for column in range(width):
                changed[column] += (
                    b0[column] * h0 + b1[column] * h1 + b2[column] * h2 + b3[column] * h3
                )
        for k in range(fours, rank):
            b0, h0 = second[slot, k], hidden[k]
            for column in range(width):
                changed[column] += b0[column] * h0
