"""The command, from recipe to published version, and what it says when it can't."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.probe import Probe, judge
from adapters.registry import Registry
from finetune.config import packaged_recipes
from finetune.evaluate import load_adapter
from finetune.metrics_file import read_metrics
from finetune.publish import PROBE_TOKENS, measure

ROOT = Path(__file__).parents[2]
QUICK = [
    "training.max_steps=4", "training.batch_tokens=256", "evaluation.bootstrap_samples=20",
    "evaluation.max_new_tokens=6",
]  # fmt: skip


@pytest.fixture
def command(task_files: dict[str, Path], finetune: Any) -> Any:
    """As `finetune`, with a task's examples and a few steps."""

    def call(step: str, recipe: str, *more: str, sets: tuple[str, ...] = ()) -> Any:
        settings = [f"data.train={task_files[recipe]}", *QUICK, *sets]
        return finetune(step, recipe, *more, sets=settings)

    return call


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process SIGTERM from inside training, after some steps."""
    from finetune import train as module

    real, seen = module._optimise, 0

    def optimise(*arguments: Any) -> float:
        nonlocal seen
        seen += 1
        if seen == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(module, "_optimise", optimise)


@pytest.mark.parametrize("recipe", packaged_recipes())
def test_a_packaged_recipe_runs_two_steps_resumes_and_publishes(
    recipe: str, command: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("check", recipe)[0] == 0  # it trains some steps as well
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        code, _, said = command("run", recipe, "--resume")
    assert code == 130
    assert "checkpoint written after step 2 of 4" in said
    assert "--resume" in said

    code, answer, said = command("run", recipe, "--resume")

    assert code == 0, said
    assert "resumed after step 2" in said
    folder = Path(answer["folder"])
    assert [e["step"] for e in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    assert answer["done"] == ["prepare", "check", "train", "evaluate", "publish"]
    version = Registry.open(home).find(answer["version"])
    assert version.digest == answer["digest"]
    assert f"{version.reference} {version.digest}" in said
    manifest = version.manifest
    assert manifest.task == {"code": "generate", "classify-many": "classify"}.get(recipe, recipe)
    names = {
        "translate": {"chrf", "chrf++", "bleu"}, "answer": {"exact_match", "f1"},
        "classify": {"accuracy", "macro_precision", "macro_recall", "macro_f1", "ece"},
        "classify-many": {"accuracy", "macro_precision", "macro_recall", "macro_f1", "ece"},
        "generate": {"perplexity", "loss", "rouge_l"},
        "code": {"perplexity", "loss", "rouge_l", "pass@1"},
    }  # fmt: skip
    assert set(manifest.metrics) == names[recipe]
    assert all(m.low <= m.value <= m.high for m in manifest.metrics.values())
    assert manifest.training["config"]["training"]["max_steps"] == 4
    assert manifest.training["packages"]["torch"] == version_of("torch")
    assert [d.split for d in manifest.datasets] == ["train", "test"]
    assert sum(d.examples for d in manifest.datasets) == 48
    predictions = (folder / "predictions.jsonl").read_text().splitlines()
    assert {"input", "reference", "base", "adapter"} <= json.loads(predictions[0]).keys()
    assert "report.html" in manifest.files
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_probe_is_reproduced_by_the_published_files(
    command: Any, home: Path, base: Any
) -> None:
    code, answer, said = command("run", "translate", sets=("training.learning_rate=0.02",))
    assert code == 0, said
    version = Registry.open(home).find(answer["version"])
    probe = Probe.load(version.folder / "probe.json")
    assert probe.digest() == version.manifest.probe
    assert len(probe.items) == 2
    assert all(len(item.prompt_ids) <= PROBE_TOKENS for item in probe.items)
    assert all(8 <= len(item.token_ids) <= 12 for item in probe.items)

    model = load_adapter(base, version.folder, "float32", "cpu")

    def logprobs() -> list[list[float]]:
        found = []
        for item in probe.items:
            logits = model(input_ids=torch.tensor([item.prompt_ids])).logits[0, -1].float()
            found.append(torch.log_softmax(logits, -1)[item.token_ids].tolist())
        return found

    with torch.no_grad():
        with_adapter = logprobs()
        with model.disable_adapter():
            without = logprobs()
    assert judge(probe, with_adapter, "float32").proved
    assert not judge(probe, without, "float32").proved
    for item, values in zip(probe.items, without, strict=True):
        assert item.base_logprobs == pytest.approx(values, abs=1e-4)


def test_an_adapter_without_effect_is_not_published(command: Any, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    code, answer, _ = command("train", "translate")
    assert code == 0
    path = Path(answer["folder"]) / "adapter" / "adapter_model.safetensors"
    weights = {
        name: torch.zeros_like(w) if "lora_B" in name else w for name, w in load_file(path).items()
    }
    save_file(weights, path)

    code, answer, said = command("publish", "translate")

    assert code == 1
    assert "has no effect" in said
    assert answer["error"]["code"] == "incompatible_adapter"
    assert Registry.open(home).adapters() == []


def test_each_step_runs_alone_and_does_what_is_missing_before_it(command: Any) -> None:
    assert command("prepare", "classify")[1]["done"] == ["prepare"]
    assert command("train", "classify")[1]["done"] == ["prepare", "check", "train"]
    code, answer, said = command("evaluate", "classify")
    assert answer["done"][-1] == "evaluate"
    assert "train classify" not in said
    code, answer, said = command("evaluate", "classify", "--resume")
    assert (code, "all done already" in said) == (0, True)


def test_changed_data_is_not_mixed_with_an_earlier_preparation(
    command: Any, task_files: dict[str, Path]
) -> None:
    assert command("train", "translate")[0] == 0
    with task_files["translate"].open("a") as file:
        file.write('{"source": "new", "target": "nouveau"}\n')

    code, answer, _ = command("run", "translate", "--resume")
    assert code == 2
    assert "the data changed" in answer["error"]["message"]

    code, answer, _ = command("prepare", "translate")
    assert (code, answer["done"]) == (0, ["prepare"])


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (("training.epochs=0", "lora.rr=1"), "2 mistakes"),
        (("training.max_length=8",), "no supervised tokens"),
        (("data.train=missing.jsonl",), "matches no file"),
        (("base=other",), "no base model 'other'"),
    ],
)
def test_bad_input_exits_with_two_and_says_what_is_wrong(
    command: Any, sets: tuple[str, ...], problem: str
) -> None:
    code, answer, said = command("run", "translate", sets=sets)
    assert code == 2
    assert problem in said
    assert problem in answer["error"]["message"]


def test_a_run_in_use_is_refused(command: Any, home: Path) -> None:
    import fcntl

    _, answer, _ = command("prepare", "translate")
    with (Path(answer["folder"]) / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, said = command("train", "translate")
    assert code == 2
    assert "another process" in said


def test_sigterm_ends_the_process_with_130_and_a_checkpoint(
    home: Path, task_files: dict[str, Path]
) -> None:
    arguments = [sys.executable, "-m", "finetune", "run", "translate", "--home", str(home)]
    for text in (f"data.train={task_files['translate']}", "training.epochs=1000"):
        arguments += ["--set", text]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        deadline = time.monotonic() + 60
        while not (found := list((home / "runs").glob("*/metrics.jsonl"))) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=60)

    assert child.returncode == 130, said
    step = re.search(r"checkpoint written after step (\d+)", said)
    assert step is not None, said
    checkpoint = found[0].parent / "checkpoints" / f"step-{int(step[1]):08d}"
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "adapter.safetensors",
        "optimizer.pt",
        "position.json",
    ]


def test_equal_runs_publish_the_same_digest(command: Any, home: Path) -> None:
    _, first, _ = command("run", "generate")
    _, second, _ = command("run", "generate")
    assert (first["version"], first["digest"]) == (second["version"], second["digest"])


def test_a_signal_in_the_last_step_ends_the_run_before_the_evaluation(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("check", "generate")[0] == 0  # it trains some steps as well
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        code, _, said = command("run", "generate", "--resume")
    assert code == 130
    assert "last finished step" in said

    _, answer, said = command("train", "generate", "--resume")
    assert "all done already" in said
    assert answer["done"] == ["prepare", "check", "train"]


def test_preference_tuning_is_stopped_resumed_and_published_with_a_proof(
    command: Any, home: Path, preferences: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = (
        f"data.train={preferences}", "training.method=dpo", "training.max_steps=30",
        "training.learning_rate=0.01", "training.loraplus_lr_ratio=4", "lora.use_rslora=true",
    )  # fmt: skip
    assert command("check", "generate", sets=sets)[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        code, _, said = command("run", "generate", "--resume", sets=sets)
    assert (code, "checkpoint written after step 7 of 30" in said) == (130, True)
    code, answer, said = command("run", "generate", "--resume", sets=sets)
    assert code == 0, said

    version = Registry.open(home).find(answer["version"])
    assert version.manifest.peft["use_rslora"] is True
    assert version.manifest.training["config"]["training"]["method"] == "dpo"
    accuracy = version.manifest.metrics["preference_accuracy"]
    assert accuracy.value > 0.9 > (accuracy.base_value or 0)
    probe = Probe.load(version.folder / "probe.json")
    model = load_adapter(base, version.folder, "float32", "cpu")
    assert judge(probe, measure(model, probe), "float32").proved


def test_a_missing_reporter_is_told_before_training(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, answer, _ = command("run", "translate", sets=("training.report_to=mlflow",))
    assert (code, answer["error"]["param"]) == (2, "training.report_to")
    assert "modiste[mlflow]" in answer["error"]["hint"]


def test_check_writes_a_page_and_json_with_what_was_measured(command: Any) -> None:
    code, answer, said = command("check", "classify")
    assert code == 0, said
    estimate = answer["preflight"]["estimate"]
    assert estimate["steps_measured"] == 5
    assert "median of 5 real steps" in said
    page = (Path(answer["folder"]) / "preflight.html").read_text()
    assert "median of 5 real steps" in page


def test_a_failed_check_tells_its_findings_as_json_and_page(
    command: Any, home: Path, task_files: dict[str, Path]
) -> None:
    code, answer, _ = command("check", "translate", sets=("training.max_length=8",))
    assert code == 2
    codes = [found["code"] for found in answer["error"]["preflight"]["findings"]]
    assert codes[0] == "no_supervised_tokens"
    assert "no_supervised_tokens" in next((home / "runs").glob("*/preflight.html")).read_text()

    with task_files["answer"].open("a") as file:
        file.write('{"question": "<b>"\n{"question": "why?", "answer": ""}\n')
    code, answer, _ = command("check", "answer")
    assert code == 2
    codes = [found["code"] for found in answer["error"]["findings"]]
    assert codes == ["unreadable_record", "empty_field"]
    pages = [path.read_text() for path in (home / "runs").glob("answer*/preflight.html")]
    assert "unreadable_record" in pages[0]
