"""A published version measured again: the same figures on the same data, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.registry import Registry
from finetune import evaluate_version
from finetune.config import Recipe
from finetune.run import Run

QUICK = {"learning_rate": 0.01, "max_steps": 2}


def publish(recipe: Recipe, home: Path) -> None:
    run = Run(recipe, Registry.open(home), Console(quiet=True))
    with run.locked():
        for step in ("prepare", "train", "evaluate", "publish"):
            getattr(run, step)()


@pytest.fixture
def command(finetune: Any) -> Any:
    return partial(finetune, "evaluate")


def held_out(path: Path) -> str:
    """The first twenty lines, as a file of their own."""
    part = path.with_name(f"held-{path.name}")
    part.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    return str(part)


@pytest.mark.parametrize("task", ["classify", "translate"])
def test_the_same_examples_give_the_figures_of_the_manifest(
    task: str, make_recipe: Any, task_files: dict[str, Path], home: Path, command: Any
) -> None:
    test = held_out(task_files[task])
    prompt = {"user": "{text} in {target}:"} if task == "translate" else {}
    gate = {"metric": "accuracy", "over_base": -2} if task == "classify" else None
    publish(
        make_recipe(task, data={"test": test}, prompt=prompt, gate=gate,
                    training=QUICK), home,
    )  # fmt: skip

    code, report, said = command(f"{task}@1", "--data", test)

    assert code == 0, said
    kept = Registry.open(home).find(f"{task}@1").manifest
    assert report["examples"] == 20
    assert set(report["metrics"]) == set(kept.metrics)
    for name, metric in kept.metrics.items():
        again = report["metrics"][name]
        assert again["value"] == pytest.approx(metric.value, rel=1e-5), name
        assert again["base_value"] == pytest.approx(metric.base_value, rel=1e-5), name
    assert ("gate" in report) == (task == "classify")
    assert kept.gate is None or report["gate"]["reason"] == kept.gate.reason


def test_it_is_compared_with_the_version_that_is_live_now(
    make_recipe: Any, task_files: dict[str, Path], home: Path, command: Any
) -> None:
    for seed in (1, 2):
        publish(make_recipe("classify", training={**QUICK, "seed": seed}), home)
    test, registry = held_out(task_files["classify"]), Registry.open(home)
    registry.promote("classify@1")
    assert command("classify@1", "--data", test)[1]["live"] is None

    _, report, _ = command("classify@2", "--data", test, "--set", "evaluation.max_examples=7")

    assert report["live"]["reference"] == "classify@1"
    assert "live_value" in report["metrics"]["accuracy"]
    assert report["examples"] == 7


def test_a_server_that_is_started_for_it_has_these_versions_alone(
    make_recipe: Any, task_files: dict[str, Path], home: Path, command: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for seed in (1, 2):
        publish(make_recipe("classify", training={**QUICK, "seed": seed}), home)
    registry = Registry.open(home)
    registry.promote("classify@1")
    there: list[str] = []

    @contextmanager
    def serving(own: Registry, *_: Any) -> Iterator[str]:  # its start is tested with the engine
        there.extend(own.find(f"classify@{n}").digest for n in (1, 2))
        yield "http://127.0.0.1:9"

    monkeypatch.setattr("finetune.evaluate_version.serving", serving)
    test = held_out(task_files["classify"])
    code, answer, _ = command("classify@2", "--data", test, "--server", "start")

    assert (code, answer["error"]["code"]) == (1, "server_failed")  # nobody is at that address
    assert there == [registry.find(f"classify@{n}").digest for n in (2, 1)]


def test_what_cannot_be_measured_is_told(
    make_recipe: Any, task_files: dict[str, Path], home: Path, command: Any, write_lines: Any
) -> None:
    publish(make_recipe("classify", training=QUICK), home)
    test = str(task_files["classify"])
    other = write_lines("other.jsonl", [{"text": "a", "label": "unknown"}])
    for arguments, code, words in (
        (("classify@2", "--data", test), 2, "version 2"),
        (("classify@1", "--server", "http://x"), 2, "--data FILE"),
        (("classify@1", "--data", str(other)), 2, "'unknown' is none of long, short"),
        (("classify@1", "--data", test, "--set", "evaluation.maxx=1"), 2, "max_examples"),
        (("classify@1", "--data", test, "--server", "http://127.0.0.1:9"), 1, "modiste serve"),
        (("classify@1", "--data", test, "--server", "http://x:y"), 2, "is no address"),
    ):
        found, _, said = command(*arguments)
        assert (found, words in said) == (code, True), said


def test_on_a_gpu_it_is_measured_in_the_dtype_of_its_own_evaluation(
    make_recipe: Any, home: Path
) -> None:
    publish(make_recipe("translate", training=QUICK), home)
    version = Registry.open(home).find("translate@1")
    dtype = evaluate_version._dtype
    assert dtype(version, "auto", "cuda") == "float32"  # whatever the GPU could do
    assert dtype(version, "bfloat16", "cuda") == "bfloat16"
    assert dtype(version, "auto", "cpu") == "float32"
