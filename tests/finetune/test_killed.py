"""kill -9 at random steps changes no loss, whatever the recipe asks for."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
FIGURES = ("step", "loss", "learning_rate", "reward_margin", "validation_loss")


def run(home: Path, recipe: Path, kills: int, seed: int) -> list[int]:
    command = [sys.executable, "-m", "tests.finetune.killed", home, recipe, kills, seed]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_a_run_killed_at_random_steps_has_the_losses_of_one_that_was_not(
    method: str, home: Path, preferences: Path, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "task": "generate",
        "data": {"train": str(preferences), "validation": str(preferences)},
        "lora": {"dropout": 0.1, "use_rslora": True},
        "training": {
            "method": method, "epochs": 10, "batch_tokens": 100, "micro_batch_tokens": 64,
            "learning_rate": 0.001, "loraplus_lr_ratio": 8, "checkpoint_every_steps": 4,
            "best_by": "loss",
        },
    }  # fmt: skip
    paths = {name: tmp_path / f"{name}.yaml" for name in ("whole", "killed")}
    for name, path in paths.items():
        path.write_text(yaml.safe_dump({"name": name, **recipe}))
    seed = random.randrange(10**6)

    run(home, paths["whole"], 0, seed)
    killed = run(home, paths["killed"], 5, seed)

    folders = {name: next((home / "runs").glob(f"{name}-*")) for name in paths}
    told = {
        name: [[entry.get(key) for key in FIGURES] for entry in read_metrics(f / "metrics.jsonl")]
        for name, f in folders.items()
    }
    assert len(killed) == 5
    assert len(told["whole"]) > max(killed), killed
    assert told["killed"] == told["whole"], (seed, killed)
    weights = [f / "adapter" / "adapter_model.safetensors" for f in folders.values()]
    assert weights[0].read_bytes() == weights[1].read_bytes()
