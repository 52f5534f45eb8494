"""What base, TRL's recipe and ours reach on five public sets in equal wall time.

Our recipe is the packaged one. TRL's is SFTTrainer at its defaults with the learning
rate that its documentation gives for LoRA, the same LoRA, on the same token ids in float32. Each
gets as many steps as fit into the time, found by a short training before, so that both schedules
end in time. All three are then measured on the same held-out examples by the same code.

The sets are not the project's: BENCH_DATA names the folder that has them, and what is not there is
left out and told.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.bases import Base
from adapters.registry import Registry
from bench.harness import ROOT, Report, at_least
from bench.training import finetune, run_peer

PLACE = "BENCH_DATA"
MINUTES, MINUTES_SHORT = 10.0, 3.0
CALIBRATION_STEPS = 6
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
        {"columns": {"prompt": "mr", "completion": "ref"}},
    ),
)  # fmt: skip


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Train on each set with both, and compare."""
    place = os.environ[PLACE]
    base = Registry.open().base()  # of the home that `make` uses
    shutil.rmtree(folder, ignore_errors=True)
    seconds = 60 * (MINUTES_SHORT if short else MINUTES)
    for one in SETS:
        if (Path(place) / one.file).is_file():
            _compare(report, folder / one.name, base, one, Path(place).resolve(), seconds)
        else:
            print(f"{one.name}: {one.file} is not in {place}", file=sys.stderr)


def _compare(
    report: Report, folder: Path, base: Base, one: Set, place: Path, seconds: float
) -> None:
    folder.mkdir(parents=True)
    Registry.open(folder / "home").add_base(base)
    steps = _our_steps(folder, one, place, seconds)
    recipe = _recipe(folder, one, place, one.name, steps)
    finetune("train", recipe, folder)
    finetune("evaluate", recipe, folder)
    (run,) = (folder / "home" / "runs").glob(f"{one.name}-*")
    ours = json.loads((run / "report.json").read_text())["metrics"][one.metric]
    steps_of_peer = _peer_steps(folder, base, run, seconds)
    out = folder / "trl"
    run_peer(base, run, out, TRL_EXAMPLES, {"max_steps": steps_of_peer, **TRL_OPTIONS})
    shutil.rmtree(run / "adapter")
    shutil.copytree(out, run / "adapter")
    finetune("evaluate", recipe, folder)
    peer = json.loads((run / "report.json").read_text())["metrics"][one.metric]
    _claim(report, one, ours, peer, (steps, steps_of_peer))


def packaged(one: Set, place: Path) -> dict[str, Any]:
    """The packaged recipe with a set as its data."""
    recipe: dict[str, Any] = yaml.safe_load(
        (ROOT / "finetune" / "recipes" / f"{one.recipe}.yaml").read_text()
    )
    data = {**recipe["data"], "train": str(place / one.file), **one.data}
    return {**recipe, "name": one.name, "data": data}


def _recipe(folder: Path, one: Set, place: Path, name: str, steps: int) -> Path:
    recipe = {**packaged(one, place), "name": name}
    recipe["training"] |= {"max_steps": steps, "epochs": 100, "dtype": "float32"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _our_steps(folder: Path, one: Set, place: Path, seconds: float) -> int:
    finetune("train", _recipe(folder, one, place, "calibration", CALIBRATION_STEPS), folder)
    (run,) = (folder / "home" / "runs").glob("calibration-*")
    entries = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return _fitting([entry["time"] for entry in entries], seconds)


def _peer_steps(folder: Path, base: Base, run: Path, seconds: float) -> int:
    options = {"max_steps": CALIBRATION_STEPS, **TRL_OPTIONS}
    ended, _ = run_peer(base, run, folder / "trl-calibration", TRL_EXAMPLES, options)
    return _fitting(ended, seconds)


def _fitting(ended: list[float], seconds: float) -> int:
    """Steps that fit into the time, by when each of a few steps ended."""
    return max(CALIBRATION_STEPS, int(seconds * (len(ended) - 1) / (ended[-1] - ended[0])))


def _claim(
    report: Report, one: Set, ours: dict[str, Any], peer: dict[str, Any], steps: tuple[int, int]
) -> None:
    what = f"{one.name}: our {one.metric}"
    report.add(at_least(f"{what} over the base's", ours["value"] - ours["base_value"], 0.0))
    report.add(at_least(f"{what} over that of TRL's recipe", ours["value"] - peer["value"], 0.0))

    def told(figures: dict[str, Any], of: str = "") -> str:
        value, low, high = (figures[f"{of}{key}"] for key in ("value", "low", "high"))
        return f"{value:.4g} ({low:.4g} to {high:.4g})"

    report.measurements.append(
        {
            "part": "sets", "set": one.name, "metric": one.metric, "base": told(ours, "base_"),
            "TRL's recipe": told(peer), "Modiste's recipe": told(ours),
            "steps, TRL": steps[1], "steps, Modiste": steps[0],
        }
    )  # fmt: skip
