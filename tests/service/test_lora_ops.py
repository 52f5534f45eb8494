"""Our LoRA arithmetic on CPU against plain loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.lora_ops import NO_ADAPTER, add_linear, group_rows


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
    for slot, rows in group_rows(indices):
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
    assert group_rows(torch.tensor([-1, -1, -1])) == []
