"""The split depends on content alone: data that is added moves nothing."""

import gc
import hashlib
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from adapters.prompt import GenerateInput
from finetune.examples import Example, key_of
from finetune.splits import sample, split_examples

texts = st.lists(st.text(min_size=1), min_size=2, max_size=40)


def examples(prompts: list[str]) -> list[Example]:
    made = [GenerateInput(prompt) for prompt in prompts]
    return [Example(g, ("x",), f"f:{n}", key_of(g)) for n, g in enumerate(made)]


@given(texts, texts)
def test_adding_data_moves_no_example_to_the_other_side(old: list[str], new: list[str]) -> None:
    limit = 0.5 * 16**8
    assume(any(int(e.key[:8], 16) < limit for e in examples(old)))  # else one is held out in need
    before = split_examples(examples(old), 0.5, 0.2)
    after = split_examples(examples(old + new), 0.5, 0.2)
    for name in ("train", "validation", "test"):
        assert {e.key for e in getattr(before, name)} <= {e.key for e in getattr(after, name)}


@given(texts, st.floats(0, 0.5))
def test_a_split_loses_nothing_and_parts_no_equal_inputs(prompts: list[str], part: float) -> None:
    parts = split_examples(examples(prompts), part, part)
    found = [*parts.train, *parts.validation, *parts.test]
    assert sorted(e.origin for e in found) == sorted(f"f:{n}" for n in range(len(prompts)))
    assert len({e.key for e in found}) == sum(
        len({e.key for e in some}) for some in (parts.train, parts.validation, parts.test)
    )


def test_a_split_of_many_has_about_the_share_asked_for() -> None:
    parts = split_examples(examples([f"prompt {n}" for n in range(2000)]), 0.1, 0.2)
    assert 150 < len(parts.test) < 250
    assert 330 < len(parts.validation) < 470


def test_case_and_space_do_not_make_another_input() -> None:
    one, other = examples(["Save  the File", "save the file "])
    assert one.key == other.key


@given(texts, st.integers(1, 10))
def test_a_sample_is_of_the_size_asked_and_in_order(prompts: list[str], count: int) -> None:
    given_examples = examples(prompts)
    chosen = sample(given_examples, count)
    assert len(chosen) == min(count, len(given_examples))
    positions = [given_examples.index(e) for e in chosen]
    assert positions == sorted(set(positions))


@given(texts, texts)
def test_adding_data_moves_no_group_to_the_other_side(old: list[str], new: list[str]) -> None:
    def grouped(prompts: list[str]) -> list[Example]:
        return [
            replace(example, group=hashlib.sha256(str(len(prompt) % 5).encode()).hexdigest())
            for example, prompt in zip(examples(prompts), prompts, strict=True)
        ]

    sides: dict[str | None, str] = {}
    for prompts in (old, old + new):
        parts = split_examples(grouped(prompts), 0.5)
        limit = 0.5 * 16**8
        assume(any(int(e.side[:8], 16) < limit for e in grouped(prompts)))
        for name, members in (("train", parts.train), ("test", parts.test)):
            for example in members:
                assert sides.setdefault(example.group, name) == name


def test_a_long_stream_is_sampled_as_a_list_is_and_holds_few() -> None:
    kept = 0

    def stream() -> Iterator[Example]:
        nonlocal kept
        for n in range(20_000):
            if n % 5000 == 0:
                gc.collect()
                kept = max(kept, sum(type(o) is Example for o in gc.get_objects()))
            yield from examples([f"prompt {n}"])

    whole = sample(examples([f"prompt {n}" for n in range(20_000)]), 100)
    prompts = [example.input for example in whole]
    del whole
    before = sum(type(o) is Example for o in gc.get_objects())
    parts = split_examples(stream(), 0, 0, 100)
    assert [example.input for example in parts.train] == prompts
    assert kept - before < 2000


def answered(prompt: str, *answers: str, **columns: str) -> Example:
    (example,) = examples([prompt])
    return replace(example, references=answers, columns=columns)


def test_answers_to_one_input_are_measured_together() -> None:
    one, other = answered("a", "x"), answered("A ", "y", "x")
    alone = answered("b", "x")
    assert sample([one, alone, other], None) == [one, alone, other]
    joined = sample([one, alone, other], None, join=True)
    assert [e.references for e in joined] == [("x", "y"), ("x",)]
    parts = split_examples([one, alone, other], 1.0, join=True)
    assert [e.references for e in parts.test] == [("x", "y"), ("x",)]
    assert len(split_examples([one, alone, other], 0.0, join=True).train) == 3


def test_a_repetition_and_what_is_judged_by_other_asserts_stay_apart() -> None:
    same = [answered("a", "x"), answered("a", "x"), answered("a", "y")]
    assert [e.references for e in sample(same, None, join=True)] == [("x", "y"), ("x",)]
    apart = [answered("a", "x", asserts="1"), answered("a", "y", asserts="2")]
    assert sample(apart, None, join=True) == apart


def test_a_joined_sample_is_of_different_inputs_however_they_come() -> None:
    given = [answered(f"p{n % 400}", f"a{n}") for n in range(4000)]
    chosen = sample(given, 50, join=True)
    assert len({e.key for e in chosen}) == 50
    assert all(len(e.references) == 10 for e in chosen)
    again = sample(sorted(given, key=lambda e: e.key), 50, join=True)
    assert {e.key: set(e.references) for e in chosen} == {
        e.key: set(e.references) for e in again
    }  # fmt: skip
