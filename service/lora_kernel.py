"""The compiled loop of `service.lora_ops`: rows of many slots, each a little work."""

from typing import Any

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}
"""Sums in any order, as BLAS does."""


@njit(nogil=True, fastmath=FAST)  # type: ignore[untyped-decorator]
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

    Inner loops run over whole rows of the arrays, four of a matrix for two of a slot at once:
    so they become vector instructions, and answers take little longer than reading the weights
    from memory.

    Args:
        output: [B, wide] float32, changed in place from column `offset` on.
        inputs: [B, in] float32.
        first: A of all slots, [slots, R, in].
        second: B^T of all slots, [slots, R, out].
        rows: [N], each once, those of one slot side by side.
        slots: [N], the slot of each.
        ranks: [slots], how many of the R are in use.
        offset: first column.
        width: columns, at most `out`.
        scaling: factor.
    """
    hidden = np.empty((2, first.shape[1]), np.float32)
    position, end = 0, offset + width
    while position < rows.shape[0]:
        row, slot = rows[position], slots[position]
        a, b = first[slot, : ranks[slot]], second[slot, : ranks[slot]]
        if position + 1 < rows.shape[0] and slots[position + 1] == slot:
            other = rows[position + 1]
            _shrink_two(hidden, inputs[row], inputs[other], a, scaling)
            _expand_two(output[row, offset:end], output[other, offset:end], hidden, b)
            position += 2
        else:
            _shrink(hidden[0], inputs[row], a, scaling)
            _expand(output[row, offset:end], hidden[0], b)
            position += 1


@njit(nogil=True, fastmath=FAST)  # type: ignore[untyped-decorator]
def _shrink(hidden: Any, given: Any, a: Any, scaling: Any) -> None:  # pragma: no cover
    """hidden = scaling * given @ A^T."""
    fours = len(a) - len(a) % 4
    for k in range(0, fours, 4):
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        s0 = s1 = s2 = s3 = np.float32(0)
        for i in range(len(given)):
            s0 += a0[i] * given[i]
            s1 += a1[i] * given[i]
            s2 += a2[i] * given[i]
            s3 += a3[i] * given[i]
        hidden[k], hidden[k + 1] = s0 * scaling, s1 * scaling
        hidden[k + 2], hidden[k + 3] = s2 * scaling, s3 * scaling
    for k in range(fours, len(a)):
        a0, s0 = a[k], np.float32(0)
        for i in range(len(given)):
            s0 += a0[i] * given[i]
        hidden[k] = s0 * scaling


@njit(nogil=True, fastmath=FAST)  # type: ignore[untyped-decorator]
def _expand(changed: Any, hidden: Any, b: Any) -> None:  # pragma: no cover
    """changed += hidden @ B^T; B^T may be wider."""
    fours = len(b) - len(b) % 4
    for k in range(0, fours, 4):
        b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
        h0, h1, h2, h3 = hidden[k], hidden[k + 1], hidden[k + 2], hidden[k + 3]
        for i in range(len(changed)):
            changed[i] += b0[i] * h0 + b1[i] * h1 + b2[i] * h2 + b3[i] * h3
    for k in range(fours, len(b)):
        b0, h0 = b[k], hidden[k]
        for i in range(len(changed)):
            changed[i] += b0[i] * h0


@njit(nogil=True, fastmath=FAST)  # type: ignore[untyped-decorator]
def _shrink_two(
    hidden: Any, given: Any, also: Any, a: Any, scaling: Any
) -> None:  # pragma: no cover
    """As `_shrink` for two rows, so that A is read once."""
    fours = len(a) - len(a) % 4
    for k in range(0, fours, 4):
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = np.float32(0)
        for i in range(len(given)):
            s0 += a0[i] * given[i]
            s1 += a1[i] * given[i]
            s2 += a2[i] * given[i]
            s3 += a3[i] * given[i]
            t0 += a0[i] * also[i]
            t1 += a1[i] * also[i]
            t2 += a2[i] * also[i]
            t3 += a3[i] * also[i]
        hidden[0, k], hidden[0, k + 1] = s0 * scaling, s1 * scaling
        hidden[0, k + 2], hidden[0, k + 3] = s2 * scaling, s3 * scaling
        hidden[1, k], hidden[1, k + 1] = t0 * scaling, t1 * scaling
        hidden[1, k + 2], hidden[1, k + 3] = t2 * scaling, t3 * scaling
    _shrink(hidden[0, fours:], given, a[fours:], scaling)
    _shrink(hidden[1, fours:], also, a[fours:], scaling)


@njit(nogil=True, fastmath=FAST)  # type: ignore[untyped-decorator]
def _expand_two(changed: Any, also: Any, hidden: Any, b: Any) -> None:  # pragma: no cover
    """As `_expand` for two rows, so that B is read once."""
    fours = len(b) - len(b) % 4
    for k in range(0, fours, 4):
        b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
        h0, h1, h2, h3 = hidden[0, k], hidden[0, k + 1], hidden[0, k + 2], hidden[0, k + 3]
        g0, g1, g2, g3 = hidden[1, k], hidden[1, k + 1], hidden[1, k + 2], hidden[1, k + 3]
        for i in range(len(changed)):
            changed[i] += b0[i] * h0 + b1[i] * h1 + b2[i] * h2 + b3[i] * h3
            also[i] += b0[i] * g0 + b1[i] * g1 + b2[i] * g2 + b3[i] * g3
    _expand(changed, hidden[0, fours:], b[fours:])
    _expand(also, hidden[1, fours:], b[fours:])
