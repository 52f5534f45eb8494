"""kill -9 at random steps changes no loss, whatever the recipe asks for."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from finetune.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
FIGURES = ("step", "loss", "learning_rate", "reward_margin", "validation_loss")
KILLS = 3


def run(home: Path, seed: int, recipes: dict[Path, int]) -> list[list[int]]:
    """The steps at which each recipe's run was killed, so many times."""
    wanted = [f"{path}={times}" for path, times in recipes.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.finetune.killed", str(home), str(seed), *wanted],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_runs_killed_at_random_steps_have_the_losses_of_ones_that_were_not(
    home: Path, preferences: Path, tmp_path: Path
) -> None:
    few = tmp_path / "validation.jsonl"
    few.write_text("".join(preferences.read_text().splitlines(keepends=True)[::12]))
    recipe: dict[str, Any] = {
        "task": "generate",
        "data": {"train": str(preferences), "validation": str(few)},
        "lora": {"dropout": 0.1, "use_rslora": True},
    }
    training: dict[str, Any] = {
        "max_steps": 40, "epochs": 10, "batch_tokens": 100, "micro_batch_tokens": 64,
        "learning_rate": 0.003, "loraplus_lr_ratio": 8, "checkpoint_every_steps": 4,
        "best_by": "loss", "keep_epochs": 2,
    }  # fmt: skip
    recipes = {}
    for method in ("supervised", "dpo"):
        for name, times in ((f"{method}-whole", 0), (f"{method}-killed", KILLS)):
            made = {"name": name, **recipe, "training": {**training, "method": method}}
            path = tmp_path / f"{name}.yaml"
            path.write_text(yaml.safe_dump(made))
            recipes[path] = times
    seed = random.randrange(10**6)

    killed = run(home, seed, recipes)

    for method, steps in (("supervised", killed[1]), ("dpo", killed[3])):
        folders = [next((home / "runs").glob(f"{method}-{kind}-*")) for kind in ("whole", "killed")]
        whole, resumed = (
            [[entry.get(key) for key in FIGURES] for entry in read_metrics(f / "metrics.jsonl")]
            for f in folders
        )
        assert len(steps) == KILLS
        assert len(whole) > max(steps), steps
        assert resumed == whole, (method, seed, steps)
        weights = [f / "adapter" / "adapter_model.safetensors" for f in folders]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        kept = [
            {path.parent.name: path.read_bytes() for path in f.glob("epochs/*/*.safetensors")}
            for f in folders
        ]
        assert kept[0]
        assert kept[0] == kept[1], (method, seed, steps)
