"""A recorded trace, replayed at the rate that this machine bears.

`modiste loadtest` does it, as a user runs it. The trace is Mooncake's of conversations, with its
arrival times, lengths and shared prefixes; lengths are scaled to the default base. Its speed is
doubled until a limit of the scenario fails, and what is claimed is of the last speed that held. It
is not the project's: BENCH_DATA names the folder that has it.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.parts import Measure
from bench.servers import MODISTE, Server, ServerError, free_port, running
from bench.sets import PLACE
from bench.tiny import launch

FILE = Path("trace_mooncake") / "conversation_trace.jsonl"
SPEEDS, SPEEDS_SHORT = (0.25, 0.5, 1.0, 2.0, 4.0), (0.25, 0.5)
SECONDS, SECONDS_SHORT = 120.0, 40.0
LATE_MS = 50.0
SCALE = 0.02


@dataclass(frozen=True)
class Replayed:
    """What one speed came to."""

    speed: float
    holds: bool
    """Every limit of the scenario, as `modiste loadtest` judges."""
    late: list[float]
    """How late each request was sent, ms."""
    failed: int
    last_s: float
    """When the last request was sent."""
    planned_s: float
    """When it should have been."""
    report: Path


def parts() -> dict[str, Measure]:
    """The part, where the trace lies in the folder that BENCH_DATA names."""
    place = os.environ.get(PLACE)
    if place is None or not (Path(place) / FILE).is_file():
        print(f"no trace: {PLACE} names no folder that has {FILE}", file=sys.stderr)
        return {}
    return {"trace": partial(measure, Path(place) / FILE)}


def measure(trace: Path, report: Report, folder: Path, *, short: bool) -> None:
    """Replay it faster and faster."""
    shutil.rmtree(folder, ignore_errors=True)
    base = Registry.open().base()  # of the home that `make` uses
    registry = Registry.open(folder / "home")
    registry.add_base(base)
    start = launch("trace", registry.home.root, free_port(), {"worker_jobs": 0})
    borne: Replayed | None = None
    with running([start], folder / "logs") as (server,):
        for speed in SPEEDS_SHORT if short else SPEEDS:
            found = replay(server, trace, folder / f"speed-{speed:g}", speed, short=short)
            if not found.holds:
                break
            borne = found
    if borne is None:
        raise ServerError(f"not even the slowest replay held: see {folder}")
    claim(report, borne, base.name)


def replay(server: Server, trace: Path, folder: Path, speed: float, *, short: bool) -> Replayed:
    """Run `modiste loadtest` on the trace's beginning."""
    changes = {
        "replay.file": trace, "replay.speed": speed, "replay.length_scale": SCALE,
        "replay.duration_s": SECONDS_SHORT if short else SECONDS, "replay.max_requests": 5000,
        "schedule.late_ms": LATE_MS, "schedule.late_ratio": 0.01,
    }  # fmt: skip
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    command = [
        MODISTE, "loadtest", "--host", f"http://127.0.0.1:{server.port}", "--scenario", "mooncake",
        "--out", str(folder), *settings,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode not in (0, 1) or not (folder / "mooncake.html").is_file():
        raise ServerError(f"modiste loadtest ended with {done.returncode}: {done.stderr[-2000:]}")
    lines = (folder / "mooncake_outcomes.jsonl").read_text(encoding="utf-8").splitlines()
    return read(speed, done.returncode == 0, [json.loads(line) for line in lines], folder)


def read(speed: float, holds: bool, outcomes: list[dict[str, Any]], folder: Path) -> Replayed:
    """What its outcomes say."""
    if not outcomes:
        raise ServerError(f"no request was sent at speed {speed:g}")
    last = max(outcomes, key=lambda outcome: outcome["arrived_s"])
    return Replayed(
        speed=speed,
        holds=holds,
        late=[outcome["late_ms"] for outcome in outcomes],
        failed=sum(outcome["answer"]["error"] is not None for outcome in outcomes),
        last_s=last["arrived_s"] + last["late_ms"] / 1000,
        planned_s=last["arrived_s"],
        report=folder / "mooncake.html",
    )


def claim(report: Report, borne: Replayed, base: str) -> None:
    """The schedule was kept, and there is a report."""
    late = sum(late_ms > LATE_MS for late_ms in borne.late) / len(borne.late)
    report.add(at_most(f"share of requests sent over {LATE_MS:g} ms late", late, 0.01))
    report.add(
        at_most(
            "time that the schedule took, over that it has", borne.last_s / borne.planned_s, 1.01
        )
    )
    report.add(at_most("requests that failed", borne.failed, 0))
    report.add(at_least("reports written", float(borne.report.is_file()), 1))
    report.measurements.append(
        {
            "base": base, "requests": len(borne.late), "speed": borne.speed,
            "requests/s": round(len(borne.late) / borne.planned_s, 2),
            "median late ms": round(sorted(borne.late)[len(borne.late) // 2], 2),
        }
    )  # fmt: skip
