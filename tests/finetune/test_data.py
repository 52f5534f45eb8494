"""The split is stable, the ids are the renderer's, and what is written is read again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adapters.prompt import GenerateInput, Renderer, TranslateInput
from finetune.config import Recipe
from finetune.data import load_prepared, prepare, sample, save_prepared, split_examples
from finetune.examples import Example, key_of
from finetune.sources import BrokenData

texts = st.lists(st.text(min_size=1), min_size=2, max_size=40)


def examples(prompts: list[str]) -> list[Example]:
    made = [GenerateInput(prompt) for prompt in prompts]
    return [Example(g, ("x",), f"f:{n}", key_of(g)) for n, g in enumerate(made)]


@given(texts, texts)
def test_adding_data_moves_no_example_to_the_other_side(old: list[str], new: list[str]) -> None:
    limit = 0.5 * 16**8
    assume(any(int(e.key[:8], 16) < limit for e in examples(old)))  # else one is held out in need
    before_train, before_test = split_examples(examples(old), 0.5)
    train, test = split_examples(examples(old + new), 0.5)
    assert {e.key for e in before_train} <= {e.key for e in train}
    assert {e.key for e in before_test} <= {e.key for e in test}


@given(texts, st.floats(0, 0.5))
def test_a_split_loses_nothing_and_parts_no_equal_inputs(prompts: list[str], part: float) -> None:
    train, test = split_examples(examples(prompts), part)
    assert sorted(e.origin for e in train + test) == sorted(f"f:{n}" for n in range(len(prompts)))
    assert not {e.key for e in train} & {e.key for e in test}


def test_a_split_of_many_has_about_the_share_asked_for() -> None:
    _, test = split_examples(examples([f"prompt {n}" for n in range(2000)]), 0.1)
    assert 150 < len(test) < 250


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


def test_training_ids_begin_with_the_prompt_that_serving_uses(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    recipe = make_recipe("translate")
    prepared = prepare(recipe, renderer, 512)
    assert len(prepared.rows) == 48
    for row in prepared.rows:
        asked = TranslateInput(row.input["text"], "en", "fr")
        prompt = renderer.prompt_ids(recipe.template, asked)
        assert row.prompt_ids == prompt
        assert row.ids == prompt + renderer.completion_ids(row.references[0])
        assert row.supervised == list(range(len(prompt), len(row.ids)))
        assert renderer.end_id in row.ids[len(prompt) :]


def test_a_chat_supervises_the_assistant_only(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    path = write_lines("chat.jsonl", [{"messages": chat}])
    recipe = make_recipe("generate", data={"train": str(path), "holdout_fraction": 0})
    (row,) = prepare(recipe, renderer, 512).rows
    said = [row.ids[position] for position in row.supervised]
    assert said == renderer.completion_ids("two") + renderer.completion_ids("four")
    assert row.prompt_ids == renderer.chat_ids(chat[:3])


def test_what_is_too_long_is_cut_at_its_end(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    whole = prepare(make_recipe("translate"), renderer, 512).of("train")[0]
    length = len(whole.prompt_ids) + 2
    recipe = make_recipe("translate", training={"max_length": length})
    cut = prepare(recipe, renderer, 512).of("train")[0]
    assert cut.ids == whole.ids[:length]
    assert cut.truncated
    assert cut.supervised == [length - 2, length - 1]


def test_broken_lines_of_all_files_are_reported_together(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    one = write_lines("one.jsonl", [{"source": "a", "target": "b"}, "{", {"source": "c"}])
    two = write_lines("two.jsonl", ["[]", {"source": "d", "target": "e"}])
    changes: dict[str, Any] = {"train": [str(one), str(two)], "holdout_fraction": 0}

    with pytest.raises(BrokenData) as caught:
        prepare(make_recipe("translate", data=changes), renderer, 512)
    places = {(Path(item.path).name, item.line) for item in caught.value.broken}
    assert places == {("one.jsonl", 2), ("one.jsonl", 3), ("two.jsonl", 1)}
    assert all(f"{name}:{line}: " in caught.value.message for name, line in places)

    changes["on_broken"] = "skip"
    prepared = prepare(make_recipe("translate", data=changes), renderer, 512)
    assert [row.input["text"] for row in prepared.rows] == ["a", "d"]
    assert prepared.counts == {"broken lines": 3}


def test_what_is_saved_is_loaded_unchanged(
    make_recipe: Callable[..., Recipe], renderer: Renderer, tmp_path: Path
) -> None:
    prepared = prepare(make_recipe("classify"), renderer, 512)
    save_prepared(prepared, tmp_path, "sha256:0")
    assert load_prepared(tmp_path) == prepared
    assert prepared.labels == ["long", "short"]


def test_preferences_are_written_and_read_again_whole(
    make_recipe: Callable[..., Recipe], renderer: Renderer, preferences: Path, tmp_path: Path
) -> None:
    recipe = make_recipe("generate", data={"train": str(preferences)}, training={"method": "dpo"})
    prepared = prepare(recipe, renderer, 512)
    assert all(row.rejected_ids and row.rejected_supervised for row in prepared.rows)
    assert not any(row.truncated for row in prepared.rows)
    save_prepared(prepared, tmp_path, "base")
    assert load_prepared(tmp_path).rows == prepared.rows


def test_an_answer_that_was_not_preferred_is_cut_too(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    said = {name: [{"role": "assistant", "content": text}] for name, text in (
        ("preferred_output", "yes"), ("non_preferred_output", "no " * 60),
    )}  # fmt: skip
    path = write_lines(
        "p.jsonl", [{"input": {"messages": [{"role": "user", "content": "well?"}]}, **said}]
    )
    recipe = make_recipe(
        "generate", data={"train": str(path), "holdout_fraction": 0}, training={"max_length": 40}
    )
    (row,) = prepare(recipe, renderer, 512).rows
    assert (len(row.rejected_ids), row.truncated) == (40, True)
    assert row.rejected_supervised[-1] == 39
