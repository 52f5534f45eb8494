"""Evaluation on a tiny base: against the base and the live version, judged by a gate, told."""

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from adapters.bases import Base
from adapters.errors import GateFailed
from adapters.registry import Registry, Version
from finetune.config import Recipe
from finetune.evaluate import load_adapter
from finetune.live import Live, find_live, worn
from finetune.run import STEPS, Run

Make = Callable[..., Recipe]
HALF = {"holdout_fraction": 0.5}
SURE = {"metric": "accuracy", "over_base": -1.01, "over_live": None, "least_examples": 5}
OTHER = {"system": "Say it in the other way."}
NEVER = {**SURE, "over_base": 1}
"""No accuracy is better by more than 1."""


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry.open(home)


@pytest.fixture
def lines() -> Any:
    return Console(record=True, width=1000, file=io.StringIO())


def done(recipe: Recipe, registry: Registry, console: Console, until: str = "publish") -> Run:
    run = Run(recipe, registry, console)
    with run.locked():
        for step in STEPS[: STEPS.index(until) + 1]:
            if step != "check":  # nothing later reads what it finds
                getattr(run, step)()
    return run


def published(recipe: Recipe, registry: Registry, console: Console) -> tuple[Version, Run]:
    run = done(recipe, registry, console)
    written = json.loads((run.folder / "published.json").read_text())
    return registry.find(written["version"]), run


def trained(seed: int, **more: Any) -> dict[str, Any]:
    return {"training": {"seed": seed, "learning_rate": 0.01, **more}, "data": HALF}


@pytest.mark.parametrize(("gate", "passed"), [(SURE, True), (NEVER, False)])
def test_the_verdict_is_published_and_decides_about_promotion(
    gate: dict[str, Any], passed: bool, make_recipe: Make, registry: Registry, lines: Any
) -> None:
    version, run = published(make_recipe("classify", gate=gate, **trained(1)), registry, lines)

    verdict = version.manifest.gate
    assert verdict is not None
    assert (verdict.passed, len(verdict.checks)) == (passed, 1)
    assert verdict.model_dump(mode="json") == run.report["gate"]
    check, metric = verdict.checks[0], version.manifest.metrics["accuracy"]
    assert (check.ours, check.other) == (metric.value, metric.base_value)
    assert check.gain == pytest.approx(metric.value - metric.base_value)
    assert check.bound is not None
    assert check.bound <= check.gain
    said = lines.export_text()
    assert verdict.reason in said
    assert ("warning: gate failed" in said) is not passed
    if passed:
        registry.promote(version.reference)
    else:
        with pytest.raises(GateFailed):
            registry.promote(version.reference)


def test_a_gate_with_nothing_held_out_fails(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    recipe = make_recipe("classify", gate=SURE, data={"holdout_fraction": 0})
    version, _ = published(recipe, registry, lines)
    assert version.manifest.gate is not None
    assert not version.manifest.gate.passed
    assert "nothing is held out" in version.manifest.gate.reason


@pytest.mark.parametrize(
    ("task", "prompt"),
    [("classify", OTHER), ("translate", OTHER), ("generate", OTHER), ("generate", {})],
)
def test_the_live_version_is_measured_as_it_was_when_it_was_published(
    task: str, prompt: dict[str, str], make_recipe: Make, registry: Registry, lines: Any
) -> None:
    first, _ = published(make_recipe(task, prompt=prompt, **trained(1)), registry, lines)
    assert first.manifest.live is None
    assert all(metric.live_value is None for metric in first.manifest.metrics.values())
    registry.promote(first.reference)

    second, run = published(make_recipe(task, **trained(2)), registry, lines)

    assert second.manifest.live == f"{task}@{first.digest}"
    assert run.report["live"]["reference"] == f"{task}@1"
    for name, metric in second.manifest.metrics.items():
        assert metric.live_value == pytest.approx(first.manifest.metrics[name].value, rel=1e-5)
        gain = run.report["gains"][name]["live"]
        assert gain["low"] <= gain["gain"] <= gain["high"]
    measured = second.manifest.metrics.values()
    assert any(metric.live_value not in (metric.value, metric.base_value) for metric in measured)
    # what was published is what was trained, not what was put on for the comparison
    again = load_adapter(run.base, second.folder, "float32", "cpu")
    assert run._model is not None
    assert torch.equal(_logits(again), _logits(run._model))


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
        return found


def test_another_version_is_worn_for_a_while_only(
    make_recipe: Make, registry: Registry, base: Base, lines: Any
) -> None:
    one, _ = published(make_recipe("translate", **trained(1)), registry, lines)
    two, _ = published(
        make_recipe("translate", lora={"r": 4, "alpha": 16}, **trained(2)), registry, lines
    )
    model = load_adapter(base, two.folder, "float32", "cpu")
    before = _logits(model)

    alone = _logits(load_adapter(base, one.folder, "float32", "cpu"))
    with worn(model, one.folder):
        assert torch.equal(_logits(model), alone)
        assert not torch.equal(_logits(model), before)
    assert torch.equal(_logits(model), before)
    with pytest.raises(RuntimeError), worn(model, one.folder):
        raise RuntimeError
    assert torch.equal(_logits(model), before)
    assert list(model.peft_config) == ["default"]


def test_a_version_must_be_surely_better_than_the_live_one(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    gate = {"metric": "loss", "over_base": -100, "least_examples": 5}
    good, _ = published(
        make_recipe("generate", gate=gate, **trained(1, epochs=20)), registry, lines
    )
    assert good.manifest.gate is not None
    assert good.manifest.gate.passed  # nothing was live
    registry.promote(good.reference)

    worse, _ = published(make_recipe("generate", gate=gate, **trained(2, max_steps=1)), registry, lines)  # fmt: skip  # noqa: E501

    assert worse.manifest.gate is not None
    assert [(c.against, c.passed) for c in worse.manifest.gate.checks] == [
        ("base", True), ("live", False),
    ]  # fmt: skip
    assert f"the live version {good.reference}: worse by" in worse.manifest.gate.reason


def test_a_live_version_that_cannot_be_compared_fails_what_it_is_asked_for(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    first, _ = published(make_recipe("classify", **trained(1)), registry, lines)
    registry.promote(first.reference)
    (first.folder / "adapter_model.safetensors").write_bytes(b"altered")
    gate = {**SURE, "over_live": -1.01}

    second, run = published(make_recipe("classify", gate=gate, **trained(2)), registry, lines)

    assert second.manifest.live is None
    verdict = second.manifest.gate
    assert verdict is not None
    assert [c.passed for c in verdict.checks] == [True, False]
    assert "accuracy can't be compared with the live version classify@1" in verdict.reason
    assert "was altered" in verdict.reason
    assert "was altered" in (run.folder / "report.html").read_text()


def test_a_live_version_of_another_base_or_not_wanted_is_not_compared(
    make_recipe: Make, registry: Registry, base: Base, lines: Any
) -> None:
    first, _ = published(make_recipe("classify", **trained(1)), registry, lines)
    registry.promote(first.reference)
    recipe = make_recipe("classify")
    ref = base.ref.model_copy(update={"weights": "sha256:" + "0" * 64})
    other = find_live(registry, recipe, base.model_copy(update={"ref": ref}))
    assert other == Live("classify@1", first.digest, None, "it was made for another base, tiny")
    unwanted = make_recipe("classify", evaluation={"compare_live": False})
    off = find_live(registry, unwanted, base)
    assert off is not None
    assert (off.version, off.reason) == (None, "evaluation.compare_live is off")


def test_another_live_version_since_the_evaluation_is_compared_at_publication(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    first, _ = published(make_recipe("classify", **trained(1)), registry, lines)
    run = done(make_recipe("classify", **trained(2)), registry, lines, "evaluate")
    assert run.report["live"] is None
    registry.promote(first.reference)

    run.publish()

    assert "another version went live" in lines.export_text()
    assert registry.find("classify@2").manifest.live == f"classify@{first.digest}"


def test_content_that_was_published_before_keeps_its_verdict_and_says_so(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    failed, _ = published(make_recipe("classify", gate=NEVER, **trained(1)), registry, lines)
    lines.export_text()

    again, _ = published(make_recipe("classify", gate=SURE, **trained(1)), registry, lines)

    assert again.reference == failed.reference
    assert again.manifest.gate == failed.manifest.gate
    assert "published before as classify@1, and what it showed then stays: gate failed" in (
        lines.export_text()
    )


def test_slices_are_compared_on_their_own_examples(
    make_recipe: Make, registry: Registry, write_lines: Any, lines: Any
) -> None:
    texts = [f"{a} {b} {c}" for a in "klmno" for b in "pqrst" for c in "uvwx"]
    data = write_lines(
        "sliced.jsonl",
        [
            {"text": text, "label": ("x", "y")[n % 2], "place": n % 4}
            for n, text in enumerate(texts)
        ],
    )
    keep = [
        {"metric": "accuracy", "column": "place", "value": 3, "margin": 2},
        {"metric": "accuracy", "label": "x", "margin": 2},
        {"metric": "recall", "label": "x", "margin": 2},
        {"metric": "accuracy", "column": "place", "value": 9, "margin": 2},
    ]
    gate = {**SURE, "keep": keep}
    recipe = make_recipe(
        "classify", gate=gate, data={"train": str(data), **HALF}, training={"seed": 1}
    )
    version, run = published(recipe, registry, lines)

    rows = run.prepared.of("test")
    assert version.manifest.gate is not None
    _, place, label, recall, none = version.manifest.gate.checks
    assert place.examples == sum(row.columns["place"] == "3" for row in rows) > 5
    assert label.examples == recall.examples == sum(row.references == ["x"] for row in rows)
    assert (label.ours, label.bound) == (recall.ours, pytest.approx(recall.bound, abs=0.35))
    assert (none.passed, none.missing) == (False, "no held-out example has place = '9'")
    predictions = (run.folder / "predictions.jsonl").read_text().splitlines()
    right = [e["adapter"] == e["reference"] for e in map(json.loads, predictions)
             if e["reference"] == "x"]  # fmt: skip
    assert label.ours == pytest.approx(sum(right) / len(right))


def test_generated_answers_are_checked_where_the_recipe_names_a_check(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    evaluation = {
        "max_new_tokens": 6, "bootstrap_samples": 20, "max_generated": 7, "valid_json": True,
        "pattern": "(?s).*",
    }  # fmt: skip
    recipe = make_recipe("generate", evaluation=evaluation, data=HALF)
    run = done(recipe, registry, lines, "evaluate")

    found = run.report["metrics"]
    assert set(found) == {"perplexity", "loss", "rouge_l", "json_valid", "pattern"}
    assert (found["pattern"]["value"], found["json_valid"]["base_value"]) == (1.0, 0.0)
    predictions = (run.folder / "predictions.jsonl").read_text().splitlines()
    assert sum("adapter" in json.loads(line) for line in predictions) == 7
    assert len(predictions) == run.report["examples"] > 7


def test_placeholders_are_measured_on_the_texts_that_have_them(
    make_recipe: Make, registry: Registry, write_lines: Any, lines: Any
) -> None:
    data = write_lines(
        "marked.jsonl",
        [{"source": f"save {n} {{name}}", "target": f"{{name}} {n}"} for n in range(20)]
        + [{"source": f"open the {n}", "target": f"le {n}"} for n in range(20)],
    )
    recipe = make_recipe("translate", data={"train": str(data), **HALF})
    run = done(recipe, registry, lines, "evaluate")

    predictions = map(json.loads, (run.folder / "predictions.jsonl").read_text().splitlines())
    marked = [e for e in predictions if "{name}" in e["input"]["text"]]
    kept = [e["adapter"].count("{name}") == 1 for e in marked]
    value = run.report["metrics"]["placeholders"]["value"]
    assert value <= sum(kept) / len(kept)  # and no other may be added
    assert run.report["metrics"]["chrf++"]["signature"].count("nw:2")


class Reader(HTMLParser):
    """Which elements a page has, what they fetch, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_with_every_text_escaped(
    make_recipe: Make, registry: Registry, write_lines: Any, lines: Any
) -> None:
    evil = "<script>alert(1)</script>"
    data = write_lines(
        "evil.jsonl",
        [
            {"text": f"{evil} {n} & <b>", "label": f"<i>{'ab'[n % 2]}</i>", "<u>": "<s>"}
            for n in range(40)
        ],
    )
    gate = {**SURE, "keep": [{"metric": "ece", "column": "<u>", "value": "<s>", "margin": 1}]}
    recipe = make_recipe(
        "classify", gate=gate, data={"train": str(data), **HALF}, prompt={"system": f"{evil} hi"}
    )
    version, run = published(recipe, registry, lines)

    page = (version.folder / "report.html").read_text()
    assert page == (run.folder / "report.html").read_text()
    read = Reader(page)
    assert read.tags <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "tr",
        "th", "td", "img", "pre",
    }  # fmt: skip
    assert len(read.fetched) == 3
    assert all(source.startswith("data:image/") for source in read.fetched)
    assert "http:" not in page.replace("http://www.w3.org", "")
    for words in (
        f"{evil} 1", "<i>a</i>", "ece", "<u> = '<s>'", "The worst examples", "gate passed",
        "learning_rate", f"{evil} hi", run.base.ref.fingerprint, version_of("torch"),
        version.manifest.datasets[0].digest, "precision", "Calibration",
    ):  # fmt: skip
        assert words in read.text, words


def test_the_worst_and_the_most_changed_examples_are_in_the_report(
    make_recipe: Make, registry: Registry, lines: Any
) -> None:
    run = done(make_recipe("answer", **trained(1)), registry, lines, "evaluate")
    entries = [json.loads(line) for line in (run.folder / "predictions.jsonl").open()]
    page = (run.folder / "report.html").read_text()
    worst = page[page.index("The worst") : page.index("The most changed")]
    changed = page[page.index("The most changed") : page.index("How to repeat")]

    by_score = sorted(e["adapter_score"] for e in entries)
    for entry in entries:
        if entry["adapter_score"] < by_score[10]:
            assert entry["input"]["question"] in worst
        if entry["adapter_score"] == entry["base_score"]:
            assert entry["origin"] not in changed
