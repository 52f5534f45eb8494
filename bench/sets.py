"""What base, TRL's recipe and ours reach on five public sets in equal wall time.

Our recipe is the packaged one. TRL's is SFTTrainer at its defaults with the learning
rate that its documentation gives for LoRA, the same LoRA, on the same token ids in float32. Ours
gets as many steps as fit into the time, TRL's as many as fit into what ours then took and a tenth
more, each found by a short training before, so that both schedules end in time. All three are then
measured on the same held-out examples by the same code.

The sets are not the project's: BENCH_DATA names the folder that has them, and what is not there is
left out and told.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from adapters.bases import Base
from bench.harness import ROOT, Report, at_least
from bench.training import ends_of, finetune, new_home, run_peer, step_seconds

PLACE = "BENCH_DATA"
MINUTES, MINUTES_SHORT = 10.0, 3.0
CALIBRATION_STEPS, PEER_CALIBRATION_STEPS = 12, 30
"""Batches of like length all take as long; TRL's of mixed lengths don't, so more are looked at."""
SPARE, LEAST_SHARE = 1.1, 0.9
"""Of our time what TRL's training is meant to take, and must: a machine drifts by a tenth."""
TRL_OPTIONS = {"learning_rate": 1e-4}
"""https://huggingface.co/docs/trl/sft_trainer: about 1e-4 when adapters are trained."""
TRL_EXAMPLES = 8
"""A step: its default."""


@dataclass(frozen=True)
class Set:
    """A public set: where it is, how it is read, and the metric that decides."""

    name: str
    file: str
    recipe: str
    metric: str
    data: Mapping[str, Any]


SETS = (
    Set("banking77", "cls_banking77/train.jsonl", "classify-many", "macro_f1", {}),
    Set("snips", "cls_snips/train.jsonl", "classify", "macro_f1", {}),
    Set(
        "messages-en-fr", "mt_ui_l10n/en-fr.tsv", "translate", "chrf",
        {"source_lang": "en", "target_lang": "fr"},
    ),
    Set("squad", "qa_squad_train_sample/squad_train_2500.jsonl", "answer", "f1", {}),
    Set(
        "e2e", "gen_e2e_nlg/dev.jsonl", "generate", "rouge_l",
        {"columns": {"prompt": "mr", "completion": "ref"}, "holdout_fraction": 0.2},
    ),
)  # fmt: skip


def parts() -> dict[str, Callable[..., None]]:
    """A part of the benchmark for each set that is there; the others are told."""
    there = sets_there()
    for one in SETS:
        if one not in there:
            print(f"{one.name}: left out; {PLACE} names no folder with {one.file}", file=sys.stderr)
    return {f"set-{one.name}": partial(measure, one) for one in there}


def sets_there() -> list[Set]:
    """The sets that lie in the folder that BENCH_DATA names."""
    place = os.environ.get(PLACE)
    return [] if place is None else [one for one in SETS if (Path(place) / one.file).is_file()]


def measure(one: Set, report: Report, folder: Path, *, short: bool) -> None:
    """Train on a set with both, and compare."""
    base = new_home(folder)
    seconds = 60 * (MINUTES_SHORT if short else MINUTES)
    recipe = _recipe(folder, one, one.name, _our_steps(folder, one, seconds))
    peak = finetune("train", recipe, folder)
    finetune("evaluate", recipe, folder)
    (run,) = (folder / "home" / "runs").glob(f"{one.name}-*")
    ours = Reached(_figures(run, one), ends_of(run), peak)
    options = {
        "max_steps": _peer_steps(folder, base, run, 60 * SPARE * ours.minutes),
        **TRL_OPTIONS,
    }
    ended, peak = run_peer(base, run, folder / "trl", TRL_EXAMPLES, options)
    shutil.rmtree(run / "adapter")
    shutil.copytree(folder / "trl", run / "adapter")
    finetune("evaluate", recipe, folder)
    _claim(report, one, ours, Reached(_figures(run, one), ended, peak))


@dataclass(frozen=True)
class Reached:
    """What a training came to."""

    figures: Mapping[str, Any]
    ended: Sequence[float]
    """Seconds at which each step did."""
    peak_mib: float

    def told(self, of: str = "") -> str:
        value, low, high = (self.figures[f"{of}{key}"] for key in ("value", "low", "high"))
        return f"{value:.4g} ({low:.4g} to {high:.4g})"

    @property
    def minutes(self) -> float:
        return len(self.ended) * step_seconds(self.ended) / 60


def _figures(run: Path, one: Set) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((run / "report.json").read_text())["metrics"][one.metric]
    return figures


def packaged(one: Set) -> dict[str, Any]:
    """The packaged recipe with a set as its data."""
    recipe: dict[str, Any] = yaml.safe_load(
        (ROOT / "finetune" / "recipes" / f"{one.recipe}.yaml").read_text()
    )
    place = Path(os.environ[PLACE]).resolve()
    data = {**recipe["data"], "train": str(place / one.file), **one.data}
    return {**recipe, "name": one.name, "data": data}


def _recipe(folder: Path, one: Set, name: str, steps: int) -> Path:
    recipe = {**packaged(one), "name": name}
    recipe["training"] |= {"max_steps": steps, "epochs": 100, "dtype": "float32"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _our_steps(folder: Path, one: Set, seconds: float) -> int:
    finetune("train", _recipe(folder, one, "calibration", CALIBRATION_STEPS), folder)
    (run,) = (folder / "home" / "runs").glob("calibration-*")
    return _fitting(ends_of(run), seconds)


def _peer_steps(folder: Path, base: Base, run: Path, seconds: float) -> int:
    options = {"max_steps": PEER_CALIBRATION_STEPS, **TRL_OPTIONS}
    ended, _ = run_peer(base, run, folder / "trl-calibration", TRL_EXAMPLES, options)
    return _fitting(ended, seconds)


def _fitting(ended: Sequence[float], seconds: float) -> int:
    """Steps that fit into the time, by when each of a few steps ended."""
    return max(CALIBRATION_STEPS, int(seconds / step_seconds(ended)))


def _claim(report: Report, one: Set, ours: Reached, peer: Reached) -> None:
    what, mine = f"{one.name}: our {one.metric}", ours.figures
    others = peer.figures["value"]
    report.add(at_least(f"{what} over the base's", mine["value"] - mine["base_value"], 0.0))
    report.add(at_least(f"{what} over that of TRL's recipe", mine["value"] - others, 0.0))
    share = peer.minutes / ours.minutes
    report.add(at_least(f"{one.name}: TRL's time as a share of ours", share, LEAST_SHARE))
    report.measurements.append(
        {
            "set": one.name, "metric": one.metric, "base": ours.told("base_"),
            "TRL's recipe": peer.told(), "Modiste's recipe": ours.told(),
            "min, TRL": round(peer.minutes, 1), "min, Modiste": round(ours.minutes, 1),
            "steps, TRL": len(peer.ended), "steps, Modiste": len(ours.ended),
            "peak MiB, TRL": round(peer.peak_mib), "peak MiB, Modiste": round(ours.peak_mib),
        }
    )  # fmt: skip
