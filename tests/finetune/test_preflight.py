"""Preflight stops what would train on nothing or test on what was trained on."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from adapters.prompt import Renderer
from finetune.config import Recipe
from finetune.data import prepare
from finetune.findings import finding
from finetune.plan import Job, Plan
from finetune.preflight import Report, check, duration
from finetune.preflight_page import render, show

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
    assert report.sides.leaked == 1
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
    assert (report.sides.duplicates, report.sides.contradictions) == (2, 1)
    assert report.labels == {"a": 43, "b": 1}
    assert any("commonest label has 43 examples, the rarest 1" in w for w in report.warnings)


def test_the_table_shows_counts_and_text_with_brackets(
    make_recipe: Callable[..., Recipe], inspect: Callable[[Recipe], Report]
) -> None:
    report = inspect(make_recipe("translate"))
    report.findings.append(finding("left_out", "a [b] c", 1))
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


def test_the_report_tells_how_much_of_the_answers_is_cut(
    make_recipe: Callable[..., Recipe], inspect: Callable[[Recipe], Report], renderer: Renderer
) -> None:
    whole = inspect(make_recipe("translate"))
    cut = inspect(make_recipe("translate", training={"max_length": whole.longest - 3}))
    assert cut.truncated > 0
    assert cut.supervised_tokens + cut.lost_tokens == whole.supervised_tokens
    assert f"{cut.lost_tokens} of {whole.supervised_tokens} tokens of answers" in cut.warnings[-1]


def test_both_answers_of_a_preference_count_and_pairs_cut_alike_teach_nothing(
    make_preference_job: Callable[..., Job],
) -> None:
    def report(**training: int) -> Report:
        job = make_preference_job(training=training)
        return check(job.prepared, job.recipe, job.plan)

    job = make_preference_job()
    rows, found = job.prepared.of("train"), report()
    assert found.tokens == sum(len(row.ids) + len(row.rejected_ids) for row in rows)
    said = [len(row.supervised) + len(row.rejected_supervised) for row in rows]
    assert found.supervised_tokens == sum(said)
    assert (found.errors, found.unsupervised) == ([], 0)

    prompt = min(len(row.prompt_ids) for row in rows)
    found = report(max_length=prompt)
    assert found.unsupervised == len(rows)
    assert found.lost_tokens == sum(said)
    assert found.errors[0].startswith("no supervised tokens")


def test_the_page_is_whole_and_shows_text_as_text(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    label = "<script>alert(1)</script>"
    lines = [{"text": f"t{n}", "label": ("a", label)[n % 2]} for n in range(60)]
    report = inspect(make_recipe("classify", data={"train": str(write_lines("l.jsonl", lines))}))
    html = render(report)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<rect") == sum(1 for _ in report.lengths) + 2
    for found in report.findings:
        assert found.code in html


def test_a_report_holds_no_text_of_the_data_but_labels(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    lines = [{"source": f"secretword {n} a@b{n}.org", "target": "secretword"} for n in range(60)]
    report = inspect(make_recipe("translate", data={"train": str(write_lines("s.jsonl", lines))}))
    assert report.sensitive == {"email": 60}
    assert "secretword" not in json.dumps(report.to_json())
    assert ".org" not in json.dumps(report.to_json())


def test_languages_are_told_for_inputs_and_answers(
    make_recipe: Callable[..., Recipe],
    inspect: Callable[[Recipe], Report],
    write_lines: Callable[..., Path],
) -> None:
    lines = [
        {"source": f"The weather was not very good that day {n}.",
         "target": f"Le temps n'était pas très beau ce jour-là {n}."}
        for n in range(30)
    ]  # fmt: skip
    path = str(write_lines("f.jsonl", lines))
    report = inspect(make_recipe("translate", data={"train": path, "holdout_fraction": 0}))
    assert report.languages == {"input": {"en": 30}, "answer": {"fr": 30}}
    other = inspect(make_recipe("translate", data={"train": path, "target_lang": "de"}))
    assert "wrong_language" in {found.code for found in other.findings}
