"""Batches cover every example once, within their budget, the same each time."""

from hypothesis import given
from hypothesis import strategies as st

from finetune.batching import derived_seed, make_batches

lengths = st.lists(st.integers(1, 300), max_size=80)


@given(lengths, st.integers(16, 1000), st.none() | st.integers(0, 2**40))
def test_every_example_is_in_exactly_one_batch(
    sizes: list[int], budget: int, seed: int | None
) -> None:
    batches = make_batches(sizes, budget, seed)
    assert sorted(position for batch in batches for position in batch) == list(range(len(sizes)))


@given(lengths, st.integers(16, 1000))
def test_padded_batches_keep_the_budget_unless_one_example_exceeds_it(
    sizes: list[int], budget: int
) -> None:
    for batch in make_batches(sizes, budget, 0):
        assert len(batch) * max(sizes[p] for p in batch) <= budget or len(batch) == 1


def test_equal_seeds_give_equal_batches_and_others_another_order() -> None:
    sizes = [position % 17 + 1 for position in range(200)]
    assert make_batches(sizes, 64, 5) == make_batches(sizes, 64, 5)
    assert make_batches(sizes, 64, 5) != make_batches(sizes, 64, 6)


def test_passes_have_different_seeds() -> None:
    seeds = {derived_seed(seed, number) for seed in range(50) for number in range(50)}
    assert len(seeds) == 2500


def test_like_lengths_share_a_batch() -> None:
    sizes = [10, 100] * 50
    for batch in make_batches(sizes, 400, 1):
        assert len({sizes[p] for p in batch}) == 1 or len(batch) <= 40
    padded = sum(max(sizes[p] for p in b) * len(b) for b in make_batches(sizes, 400, 1))
    assert padded <= 1.1 * sum(sizes)
