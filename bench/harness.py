"""What every benchmark shares: claims, their JSON, the machine, and statistics over pairs."""

import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "build" / "bench"
REPORTED_PACKAGES = ("vllm", "torch", "transformers", "modiste")
RESAMPLES = 4000


@dataclass(frozen=True)
class Claim:
    """One statement that the benchmark can refute. Made by at_least and at_most."""

    claim: str
    value: float
    bound: float
    unit: str
    holds: bool
    interval: tuple[float, float] | None = None
    """Of the value, 95 %; None where nothing tells how it spreads within a run."""

    def line(self) -> str:
        """For a terminal."""
        verdict = "holds" if self.holds else "FAILS"
        unit = f" {self.unit}" if self.unit else ""
        return f"{verdict}: {self.claim} {self.bound:g}{unit}: {self.value:.4g}{unit}"

    def as_json(self) -> dict[str, Any]:
        """Without an interval where there is none."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Interval = tuple[float, float]


def at_least(
    what: str, value: float, bound: float, unit: str = "", interval: Interval | None = None
) -> Claim:
    """The claim that a value reaches its bound."""
    return Claim(f"{what}, at least", value, bound, unit, value >= bound, interval)


def at_most(
    what: str, value: float, bound: float, unit: str = "", interval: Interval | None = None
) -> Claim:
    """The claim that a value stays within its bound."""
    return Claim(f"{what}, at most", value, bound, unit, value <= bound, interval)


@dataclass
class Report:
    """A benchmark's result. `measurements` are figures without a bound, kept beside the claims."""

    name: str
    claims: list[Claim] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)

    def add(self, claim: Claim) -> None:
        """Keep a claim and print it."""
        self.claims.append(claim)
        print(claim.line(), flush=True)

    def holds(self) -> bool:
        """Whether something was claimed, and all of it holds."""
        return bool(self.claims) and all(claim.holds for claim in self.claims)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "short": quick(),
            "claims": [claim.as_json() for claim in self.claims],
            "measurements": self.measurements,
        }

    def write(self, folder: Path = RESULTS) -> int:
        """Write NAME.json and return the exit code: 0 when all claims hold, else 1."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
        print(f"written to {path}")
        return 0 if self.holds() else 1


def quick() -> bool:
    """Whether the short form is asked for: QUICK=1."""
    return os.environ.get("QUICK", "") not in {"", "0"}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, system."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that was measured, with "+changes" when the tree differs from it."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}+changes" if _git("status", "--porcelain") else head


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap's interval of a statistic. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    generator = random.Random(seed)  # noqa: S311  # resamples
    resampled = sorted(
        statistic(generator.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    cut = round((1 - confidence) / 2 * (RESAMPLES - 1))
    return resampled[cut], resampled[-1 - cut]


def paired_order(pair: int) -> tuple[int, int]:
    """Which of two contenders goes first in this pair: AB, BA, AB, … so that drift cancels."""
    return (0, 1) if pair % 2 == 0 else (1, 0)
