"""Our training loop against TRL's SFTTrainer at its defaults: speed, peak memory, what is learned.

Both train the same LoRA on the same token ids in float32, as many examples a step on average,
with the same learning rate and schedule, one pass, in turns and each in a process of its own.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.bases import Base
from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.heldout import heldout_loss
from bench.servers import ServerError
from bench.trl_peer import Order
from demo.data import prepare as demo_data
from finetune.metrics_file import read_metrics

DEMO = Path("build/demo")
EXAMPLES, EXAMPLES_SHORT = 640, 320
HELD_OUT = 150
ROUNDS, ROUNDS_SHORT = 3, 2
RATE, WARMUP = 1e-3, 0.05


@dataclass(frozen=True)
class Trained:
    """One training, as seen from outside."""

    adapter: Path
    tokens_per_second: float
    peak_mib: float
    steps: int
    seconds: float
    """Of all steps."""


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Train with both in turns, then compare."""
    base = new_home(folder)
    demo_data(DEMO)
    recipe = _recipe(folder, EXAMPLES_SHORT if short else EXAMPLES)
    finetune("check", recipe, folder)  # not in the process that is measured: it trains too
    (run,) = (folder / "home" / "runs").glob("speed-*")
    rows = [json.loads(line) for line in (run / "prepared.jsonl").open()]
    train = [row for row in rows if row["split"] == "train" and row["supervised"]]
    pairs: list[tuple[Trained, Trained]] = []
    for number in range(ROUNDS_SHORT if short else ROUNDS):
        ours = _ours(recipe, run, folder, train, number)
        peer = _peer(base, run, folder, train, ours.steps, number)
        pairs.append((ours, peer))
    losses = [[heldout_loss(base, one.adapter, rows) for one in pair] for pair in pairs]
    _claim(report, pairs, losses)
    estimate = json.loads((run / "preflight.json").read_text())["estimate"]
    _claim_estimate(report, estimate, [ours for ours, _ in pairs])


def new_home(folder: Path) -> Base:
    """Make a folder anew, with a home that has the base of the one that `make` uses."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = Registry.open().base()
    Registry.open(folder / "home").add_base(base)
    return base


def _recipe(folder: Path, examples: int) -> Path:
    recipe = {
        "name": "speed", "task": "translate",
        "data": {
            "train": str((DEMO / "messages-train.jsonl").resolve()),
            "test": str((DEMO / "messages-heldout.jsonl").resolve()),
            "source_lang": "en", "target_lang": "fr",
            "max_examples": examples, "max_test_examples": HELD_OUT,
        },
        "lora": {"r": 16, "alpha": 32},
        "training": {
            "epochs": 1, "learning_rate": RATE, "warmup_ratio": WARMUP, "batch_tokens": 1024,
            "max_length": 1024, "dtype": "float32",
        },
    }  # fmt: skip
    path = folder / "speed.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def finetune(step: str, recipe: Path, folder: Path) -> float:
    """One step of a recipe, in the folder's own home. Returns peak MiB. Raises ServerError."""
    command = [sys.executable, "-m", "finetune", step, str(recipe)]
    environment = os.environ | {"MODISTE_HOME": str(folder / "home")}
    return peak_mib(command, environment, folder / f"{step}.log")


def _ours(
    recipe: Path, run: Path, folder: Path, rows: Sequence[Mapping[str, Any]], number: int
) -> Trained:
    peak = finetune("train", recipe, folder)
    adapter = folder / f"ours-{number}"
    shutil.copytree(run / "adapter", adapter)
    return _trained(adapter, ends_of(run), rows, peak)


def _peer(
    base: Base, run: Path, folder: Path, rows: Sequence[Mapping[str, Any]], steps: int, number: int
) -> Trained:
    options = {
        "num_train_epochs": 1, "learning_rate": RATE, "lr_scheduler_type": "cosine",
        "warmup_steps": round(WARMUP * steps),
    }  # fmt: skip
    out = folder / f"trl-{number}"
    ended, peak = run_peer(base, run, out, round(len(rows) / steps), options)
    return _trained(out, ended, rows, peak)


def run_peer(
    base: Base, run: Path, out: Path, examples: int, options: Mapping[str, Any]
) -> tuple[list[float], float]:
    """Let TRL train what a run trained. Returns when each step ended, and peak MiB."""
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    order = Order(
        prepared=str(run), base=str(base.path), out=str(out), rank=config["r"],
        alpha=config["lora_alpha"], target_modules=sorted(config["target_modules"]),
        examples=examples, options=dict(options),
    )  # fmt: skip
    path = order.write(out.with_name(f"{out.name}.json"))
    command = [sys.executable, "-m", "bench.trl_peer", str(path)]
    log = out.with_name(f"{out.name}.log")
    peak = peak_mib(command, os.environ | {"HF_HUB_OFFLINE": "1"}, log)
    return json.loads((out / "times.json").read_text()), peak


def _trained(
    adapter: Path, ended: Sequence[float], rows: Sequence[Mapping[str, Any]], peak: float
) -> Trained:
    """Speed from the end of the first step on: what is set up there is not counted."""
    seconds = len(ended) * step_seconds(ended)
    speed = sum(len(row["ids"]) for row in rows) / seconds
    print(f"{adapter.name}: {speed:.0f} tokens/s, {peak:.0f} MiB", file=sys.stderr, flush=True)
    return Trained(adapter, speed, peak, len(ended), seconds)


def ends_of(run: Path) -> list[float]:
    """Seconds at which each step of our training ended."""
    return [entry["time"] for entry in read_metrics(run / "metrics.jsonl")]


def step_seconds(ended: Sequence[float]) -> float:
    """Mean of a step, by when each of two or more ended."""
    return (ended[-1] - ended[0]) / (len(ended) - 1)


def peak_mib(command: Sequence[str], environment: Mapping[str, str], log: Path) -> float:
    """Run a process to its end; its peak resident memory. Raises ServerError when it fails."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ServerError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    return usage.ru_maxrss / 1024


def _claim(
    report: Report, pairs: Sequence[tuple[Trained, Trained]], losses: Sequence[Sequence[float]]
) -> None:
    ours, peer = zip(*pairs, strict=True)
    speed = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
    memory = statistics.median(a.peak_mib / b.peak_mib for a, b in pairs)
    loss = statistics.median(a / b for a, b in losses)
    report.add(at_least("tokens/s over those of TRL's SFTTrainer", speed, 3.0))
    report.add(at_most("peak memory over that of TRL's SFTTrainer", memory, 0.7))
    report.add(at_most("held-out loss over that of TRL's SFTTrainer", loss, 1.01))
    for label, some, own in (("Modiste", ours, 0), ("TRL", peer, 1)):
        report.measurements.append(
            {
                "part": "speed", "trainer": label, "trainings": len(some),
                "steps": some[0].steps,
                "tokens/s": round(statistics.median(t.tokens_per_second for t in some), 1),
                "peak MiB": round(statistics.median(t.peak_mib for t in some)),
                "held-out loss": round(statistics.median(pair[own] for pair in losses), 4),
            }
        )  # fmt: skip


def _claim_estimate(report: Report, estimate: Mapping[str, Any], ours: Sequence[Trained]) -> None:
    """How far what `modiste finetune check` said before is from what training then took."""
    seconds = statistics.median(one.seconds for one in ours)
    peak = statistics.median(one.peak_mib for one in ours)
    said = float(estimate["seconds"]), estimate["peak_bytes"] / 2**20
    off = max(said[0] / seconds, seconds / said[0]), max(said[1] / peak, peak / said[1])
    report.add(at_most("factor between the time that was estimated and taken", off[0], 1.5))
    report.add(at_most("factor between the peak memory that was estimated and taken", off[1], 1.5))
    report.measurements.append(
        {
            "part": "estimate", "estimated s": round(said[0]), "taken s": round(seconds),
            "estimated MiB": round(said[1]), "taken MiB": round(peak),
        }
    )  # fmt: skip
