"""Our LoRA arithmetic on CPU against plain loops."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.lora_ops import (
    FEW_ROWS,
    NO_ADAPTER,
    add_linear,
    group_rows,
    note_ranks,
    stack_of,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=90),
    st.integers(0, 2**16),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_grouped_products_equal_one_product_a_row(
    indices: list[int], seed: int, four_dimensions: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    count = len(indices)
    x, output = some(count, 24), some(count, 50)
    a, b = [some(5, 8, 24), some(5, 8, 24)], [some(5, 16, 8), some(5, 34, 8)]
    expected = output.float()
    for row, slot in enumerate(indices):
        if slot != NO_ADAPTER:
            parts = [
                q[slot].float() @ (p[slot].float() @ x[row].float())
                for p, q in zip(a, b, strict=True)
            ]
            expected[row] += 0.5 * torch.cat(parts)

    if four_dimensions:
        a, b = [w[:, None] for w in a], [w[:, None] for w in b]
    slices = zip(a, b, (16, 34), strict=True)
    add_linear(output, x, slices, 0.5, group_rows(torch.tensor(indices)))

    exact = dtype is torch.float32
    rtol, atol = (1e-5, 1e-4) if exact else (0.02, 1.0)
    torch.testing.assert_close(output.float(), expected, rtol=rtol, atol=atol)


def test_every_row_with_an_adapter_is_in_exactly_one_group() -> None:
    indices = torch.tensor([2, 2, -1, 0, 2, 0, -1, 1])

    seen: list[tuple[int, int]] = []
    for slot, rows in group_rows(indices).groups:
        listed = range(*rows.indices(8)) if isinstance(rows, slice) else rows.tolist()
        seen += [(row, slot) for row in listed]

    assert sorted(seen) == [(0, 2), (1, 2), (3, 0), (4, 2), (5, 0), (7, 1)]


def test_rows_of_the_base_are_left_alone() -> None:
    output = torch.ones(3, 4)
    groups = group_rows(torch.tensor([-1, 1, -1]))

    layer = (torch.ones(2, 2, 6), torch.ones(2, 4, 2), 4)
    add_linear(output, torch.ones(3, 6), [layer], 1.0, groups)

    assert output[1].eq(13).all()
    assert output[[0, 2]].eq(1).all()
    assert group_rows(torch.tensor([-1, -1, -1])).groups == []


def test_few_rows_go_through_the_loop_and_many_through_a_product() -> None:
    indices = [0] * FEW_ROWS + [1] * (FEW_ROWS - 1) + [-1, 2, 1]
    rows = group_rows(torch.tensor(indices))

    assert [slot for slot, _ in rows.large] == [0, 1]
    assert (rows.few.tolist(), rows.slots.tolist()) == ([2 * FEW_ROWS], [2])


@pytest.mark.parametrize("count", [1, FEW_ROWS])
def test_rows_of_a_slot_beyond_its_adapters_rank_are_not_read(count: int) -> None:
    a, b = torch.ones(2, 1, 4, 6), torch.ones(2, 1, 3, 4)
    layer = SimpleNamespace(lora_a_stacked=(a,), lora_b_stacked=(b,))
    note_ranks(layer, 1, torch.ones(2, 6))
    output = torch.zeros(count, 3)

    add_linear(output, torch.ones(count, 6), [(a, b, 3)], 1.0, group_rows(torch.ones(count).int()))
    assert output.eq(2 * 6).all()

    note_ranks(layer, 1, [torch.ones(4, 6)])
    add_linear(output, torch.ones(count, 6), [(a, b, 3)], 1.0, group_rows(torch.ones(count).int()))
    assert output.eq(2 * 6 + 4 * 6).all()


def test_a_part_that_an_adapter_leaves_out_has_no_rank_and_an_unknown_one_all() -> None:
    parts = [(torch.zeros(2, 1, 4, 6), torch.zeros(2, 1, 3, 4)) for _ in range(2)]
    layer = SimpleNamespace(
        lora_a_stacked=tuple(a for a, _ in parts), lora_b_stacked=tuple(b for _, b in parts)
    )
    note_ranks(layer, 0, [torch.ones(3, 6), None])
    assert [int(stack_of(a, b).ranks[0]) for a, b in parts] == [3, 0]
    note_ranks(layer, 0, [torch.ones(3, 6)])
    assert [int(stack_of(a, b).ranks[0]) for a, b in parts] == [4, 4]
