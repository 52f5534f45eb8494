"""Training that is killed with -9 at ten random steps and resumed each time."""

import json
import random
import subprocess
import sys
from pathlib import Path

import yaml

from bench.harness import ROOT, Report, at_least, at_most
from bench.servers import ServerError
from bench.training import DEMO, new_home
from demo.data import prepare as demo_data
from finetune.metrics_file import read_metrics

KILLS, KILLS_SHORT = 10, 4
STEPS_A_KILL = 12
"""The next kill comes 5 to 11 steps after a start (tests.finetune.killed)."""
FIGURES = ("step", "loss", "learning_rate", "validation_loss")


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Train the same twice, one of them killed, and compare every figure and every weight."""
    kills = KILLS_SHORT if short else KILLS
    new_home(folder)
    home = folder / "home"
    demo_data(DEMO)
    recipes = {_recipe(folder, "whole", kills): 0, _recipe(folder, "killed", kills): kills}
    seed = random.randrange(10**6)  # noqa: S311  # steps
    command = [
        sys.executable, "-m", "tests.finetune.killed", str(home), str(seed),
        *(f"{path}={times}" for path, times in recipes.items()),
    ]  # fmt: skip
    with (folder / "killed.log").open("wb") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, check=False)
    if done.returncode != 0:
        tail = (folder / "killed.log").read_text(errors="replace").splitlines()[-15:]
        raise ServerError("\n".join(["training ended badly:", *tail]))
    steps = json.loads(done.stdout)[1]
    whole, killed = (next((home / "runs").glob(f"{path.stem}-*")) for path in recipes)
    _claim(report, whole, killed, steps, kills)


def _recipe(folder: Path, name: str, kills: int) -> Path:
    recipe = {
        "name": name, "task": "translate",
        "data": {
            "train": str((DEMO / "messages-train.jsonl").resolve()), "source_lang": "en",
            "target_lang": "fr", "validation_fraction": 0.02, "max_examples": 400,
            "max_test_examples": 10,
        },
        "lora": {"r": 8, "dropout": 0.05},
        "training": {
            "max_steps": kills * STEPS_A_KILL, "epochs": 20, "batch_tokens": 256,
            "dtype": "float32", "checkpoint_every_steps": 5, "best_by": "loss",
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _claim(report: Report, whole: Path, killed: Path, steps: list[int], kills: int) -> None:
    first, second = (
        [[entry.get(key) for key in FIGURES] for entry in read_metrics(run / "metrics.jsonl")]
        for run in (whole, killed)
    )
    differing = sum(a != b for a, b in zip(first, second, strict=False))
    weights = [
        (run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (whole, killed)
    ]
    report.add(at_least("kills at random steps", len(steps), kills))
    report.add(at_least("steps of the killed run", len(second), len(first)))
    report.add(at_most("steps whose figures differ in any digit", differing, 0))
    report.add(at_most("adapters that differ in any byte", int(weights[0] != weights[1]), 0))
    report.measurements.append(
        {
            "part": "resume", "steps": len(first), "killed at steps": ", ".join(map(str, steps)),
            "first loss": first[0][1], "last loss": first[-1][1],
        }
    )  # fmt: skip
