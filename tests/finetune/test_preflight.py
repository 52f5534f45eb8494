"""Preflight stops what would train on nothing or test on what was trained on."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from adapters.prompt import Renderer
from finetune.config import Recipe
from finetune.data import prepare
from finetune.plan import Plan
from finetune.preflight import Report, check, duration, show

PLAN = Plan("cpu", "float32", 1, 1, 1, 100, 50.0)


@pytest.fixture
def inspect(renderer: Renderer) -> Callable[[Recipe], Report]:
    return lambda recipe: check(prepare(recipe, renderer, 512), recipe, PLAN)


def test_clean_data_has_no_errors_and_right_counts(
    make_recipe: Callable[..., Recipe], inspect: Callable[[Recipe], Report], renderer: Renderer
) -> None:
    recipe = make_recipe("classify")
    report = inspect(recipe)
    rows = prepare(recipe, renderer, 512).of("train")
    assert report.errors == []
    assert report.tokens == sum(len(row.ids) for row in rows)
    expected = sum(len(renderer.completion_ids(row.references[0])) for row in rows)
    assert report.supervised_tokens == expected
    assert sum(report.labels.values()) == report.examples["train"]
    assert report.seconds == 2.0


def test_no_supervised_token_is_an_error(
    make_recipe: Callable[..., Recipe], inspect: Callable[[Recipe], Report]
) -> None:
    report = inspect(make_recipe("translate", training={"max_length": 8}))
    assert report.supervised_tokens == 0
    assert report.unsupervised == report.examples["train"] > 0
    assert any("no supervised tokens" in error for error in report.errors)


def test_a_held_out_input_in_the_training_data_is_an_error(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    lines = [{"source": "SAVE the file", "target": "x"}, {"source": "new", "target": "y"}]
    test = write_lines("test.jsonl", lines)
    report = inspect(make_recipe("translate", data={"test": str(test)}))
    assert report.leaked == 1
    assert any("1 held-out inputs are also in the training data" in e for e in report.errors)

    clean = write_lines("clean.jsonl", lines[1:])
    assert inspect(make_recipe("translate", data={"test": str(clean)})).errors == []


def test_one_label_only_is_an_error(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    path = write_lines("one.jsonl", [{"text": f"t{n}", "label": "a"} for n in range(20)])
    data = {"train": str(path), "labels": ["a", "b"]}
    report = inspect(make_recipe("classify", data=data))
    assert any("one label only" in error for error in report.errors)
    assert any("no training example has the label b" in w for w in report.warnings)


def test_an_empty_file_is_an_error(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    data = {"train": str(write_lines("e.jsonl", [])), "on_broken": "skip"}
    report = inspect(make_recipe("translate", data=data))
    assert any("no training examples" in error for error in report.errors)


def test_duplicates_contradictions_and_imbalance_are_counted(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    lines = [{"text": "same", "label": "a"}] * 3 + [{"text": "same", "label": "b"}]
    lines += [{"text": f"t{n}", "label": "a"} for n in range(40)]
    data = {"train": str(write_lines("d.jsonl", lines)), "holdout_fraction": 0}
    report = inspect(make_recipe("classify", data=data))
    assert (report.duplicates, report.contradictions) == (2, 1)
    assert report.labels == {"a": 43, "b": 1}
    assert any("commonest label has 43 examples, the rarest 1" in w for w in report.warnings)


def test_the_table_shows_counts_and_text_with_brackets(
    make_recipe: Callable[..., Recipe], inspect: Callable[[Recipe], Report]
) -> None:
    report = inspect(make_recipe("translate"))
    report.warnings.append("a [b] c")
    out = io.StringIO()
    show(report, Console(file=out, width=120))
    assert f"{report.supervised_tokens:,} supervised" in out.getvalue()
    assert "a [b] c" in out.getvalue()


def test_durations_read_well() -> None:
    assert [duration(s) for s in (5, 95, 3700)] == ["5 s", "1 min 35 s", "1 h 1 min"]


def test_how_a_batch_is_parted_is_told(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    recipe = make_recipe("classify")
    plan = replace(PLAN, micro_batch_tokens=64, activation_checkpointing=True)
    said = io.StringIO()
    show(check(prepare(recipe, renderer, 512), recipe, plan), Console(file=said, width=200))
    assert "64 tokens at once, activations computed twice" in said.getvalue()
