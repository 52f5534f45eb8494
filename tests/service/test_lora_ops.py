"""Our LoRA arithmetic on CPU against plain loops."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import lora_ops
from service.lora_ops import (
    LOOPED,
    LOW_RANK,
    NO_ADAPTER,
    add_linear,
    group_rows,
    lay_out,
    note_ranks,
    stack_of,
)


@pytest.fixture(autouse=True)
def _no_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_ops, "_stacks", {})
    monkeypatch.setattr(lora_ops, "_largest_ranks", {})


def layer_of(*parts: tuple[torch.Tensor, torch.Tensor]) -> SimpleNamespace:
    """A layer as vLLM makes it, by rank in memory, that holds these A and B."""
    layer = SimpleNamespace(
        lora_a_stacked=tuple(a for a, _ in parts), lora_b_stacked=tuple(b for _, b in parts)
    )
    lay_out(layer)
    for made, (_, b) in zip(layer.lora_b_stacked, parts, strict=True):
        assert made.shape == b.shape
        assert made.eq(0).all()
        made.copy_(b)
    return layer


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=200),
    st.integers(0, 2**16),
    st.sampled_from([1, 3, 8, 30, 64]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_grouped_products_equal_one_product_a_row(
    indices: list[int], seed: int, rank: int, laid_out: bool, dtype: torch.dtype
) -> None:
    lora_ops._stacks.clear()
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    count = len(indices)
    x, output = some(count, 24), some(count, 50)
    a, b = [some(5, rank, 24), some(5, rank, 24)], [some(5, 16, rank), some(5, 34, rank)]
    expected = output.float()
    for row, slot in enumerate(indices):
        if slot != NO_ADAPTER:
            parts = [
                q[slot].float() @ (p[slot].float() @ x[row].float())
                for p, q in zip(a, b, strict=True)
            ]
            expected[row] += 0.5 * torch.cat(parts)

    if laid_out:
        a, b = [w[:, None] for w in a], [w[:, None] for w in b]
        b = layer_of(*zip(a, b, strict=True)).lora_b_stacked
    for part in zip(a, b, strict=True):
        stack_of(*part)  # its rank decides between loop and product
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


def test_many_rows_of_a_high_rank_are_a_product_and_others_go_through_the_loop() -> None:
    rank = LOOPED // 16
    layer = layer_of((torch.zeros(2, 1, rank, 6), torch.zeros(2, 1, 3, rank)))
    note_ranks(layer, 1, torch.zeros(rank // 2, 6))
    rows = group_rows(torch.tensor([0] * 16 + [1] * 16))

    assert [slot for slot, _ in rows.large] == [0]
    assert (rows.few.tolist(), rows.slots.tolist()) == (list(range(16, 32)), [1] * 16)

    note_ranks(layer, 1, torch.zeros(rank, 6))
    assert len(group_rows(torch.tensor([1] * 16)).large) == 1
    assert group_rows(torch.tensor([1] * 15)).large == []

    note_ranks(layer, 1, torch.zeros(LOW_RANK, 6))
    assert group_rows(torch.tensor([1] * LOOPED)).large == []


@pytest.mark.parametrize("count", [1, 2, LOOPED])
def test_rows_of_a_slot_beyond_its_adapters_rank_are_not_read(count: int) -> None:
    layer = layer_of((torch.ones(2, 1, 4, 6), torch.ones(2, 1, 3, 4)))
    slices = [(layer.lora_a_stacked[0], layer.lora_b_stacked[0], 3)]
    note_ranks(layer, 1, torch.ones(2, 6))
    output = torch.zeros(count, 3)

    add_linear(output, torch.ones(count, 6), slices, 1.0, group_rows(torch.ones(count).int()))
    assert output.eq(2 * 6).all()

    note_ranks(layer, 1, [torch.ones(4, 6)])
    add_linear(output, torch.ones(count, 6), slices, 1.0, group_rows(torch.ones(count).int()))
    assert output.eq(2 * 6 + 4 * 6).all()


def test_b_lies_by_rank_in_memory() -> None:
    layer = layer_of((torch.ones(2, 1, 4, 6), torch.ones(2, 1, 3, 4)))

    second = stack_of(layer.lora_a_stacked[0], layer.lora_b_stacked[0]).second_array

    assert second.shape == (2, 4, 3)
    assert second.flags["C_CONTIGUOUS"]


def test_a_part_that_an_adapter_leaves_out_has_no_rank_and_an_unknown_one_all() -> None:
    parts = [(torch.zeros(2, 1, 4, 6), torch.zeros(2, 1, 3, 4)) for _ in range(2)]
    layer = layer_of(*parts)

    def ranks() -> list[int]:
        pairs = zip(layer.lora_a_stacked, layer.lora_b_stacked, strict=True)
        return [int(stack_of(a, b).ranks[0]) for a, b in pairs]

    note_ranks(layer, 0, [torch.ones(3, 6), None])
    assert ranks() == [3, 0]
    note_ranks(layer, 0, [torch.ones(3, 6)])
    assert ranks() == [4, 4]
