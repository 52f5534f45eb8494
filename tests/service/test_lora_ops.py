"""Our LoRA arithmetic on CPU against plain loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.lora_ops import NO_ADAPTER, expand, group_rows, shrink


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=90), st.integers(0, 2**16), st.booleans())
def test_grouped_products_equal_one_product_a_row(
    indices: list[int], seed: int, four_dimensions: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = len(indices)
    x = torch.randn(count, 24, generator=generator)
    a = torch.randn(5, 8, 24, generator=generator)
    b = torch.randn(5, 16, 8, generator=generator)
    output = torch.randn(count, 40, generator=generator)
    expected = output.clone()
    for row, slot in enumerate(indices):
        if slot != NO_ADAPTER:
            expected[row, 10:26] += 0.5 * (b[slot] @ (a[slot] @ x[row]))

    groups = group_rows(torch.tensor(indices))
    stacked_a, stacked_b = (a[:, None], b[:, None]) if four_dimensions else (a, b)
    buffer = torch.full((count, 8), 7.0)
    shrink(x, stacked_a, buffer, groups, 0.5)
    expand(buffer, stacked_b, output, groups, offset=10, add=True)

    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_every_row_with_an_adapter_is_in_exactly_one_group() -> None:
    indices = torch.tensor([2, 2, -1, 0, 2, 0, -1, 1])

    seen: list[tuple[int, int]] = []
    for slot, rows in group_rows(indices):
        listed = range(*rows.indices(8)) if isinstance(rows, slice) else rows.tolist()
        seen += [(row, slot) for row in listed]

    assert sorted(seen) == [(0, 2), (1, 2), (3, 0), (4, 2), (5, 0), (7, 1)]


def test_rows_of_the_base_are_left_alone() -> None:
    output = torch.ones(3, 4)
    groups = group_rows(torch.tensor([-1, -1, -1]))

    shrink(torch.ones(3, 6), torch.ones(2, 2, 6), torch.ones(3, 2), groups, 1.0)
    expand(torch.ones(3, 2), torch.ones(2, 4, 2), output, groups, offset=0, add=True)

    assert groups == []
    assert output.eq(1).all()
