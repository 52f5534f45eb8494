"""Rewrites docs/benchmarks.md from the JSON files of the last runs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
DEMO = ROOT / "build" / "demo" / "result.json"
HEADER = """# Benchmarks

Written by `make bench` from what was measured; don't edit it. Each benchmark checks claims, and
fails when one does not hold. Peers run in the same run, in alternation; a ratio is Modiste's
figure over the peer's.
"""
NOTHING = "No benchmark has been run here yet.\n"
METRIC_NAMES = {
    "chrf": "chrF",
    "bleu": "BLEU",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
}


def render(results: Path = RESULTS, demo: Path = DEMO) -> str:
    """The page. The same files give the same page."""
    sections = [
        _benchmark(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(results.glob("*.json"))
    ]
    if demo.exists():
        sections.insert(0, _demo(json.loads(demo.read_text(encoding="utf-8"))))
    return "\n".join([HEADER, *(sections or [NOTHING])])


def _benchmark(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    claims = [
        [
            claim["claim"],
            _number(claim["bound"]),
            _number(claim["value"]),
            claim["unit"],
            "holds" if claim["holds"] else "**fails**",
        ]
        for claim in result["claims"]
    ]
    parts = [
        f"## {result['name']}\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}; {versions}; commit {result['commit'][:12]}"
        f"{' with changes' if result['commit'].endswith('+changes') else ''}.\n",
        _table(("claim", "bound", "measured", "unit", ""), claims),
    ]
    measurements = result.get("measurements", [])
    if measurements:
        columns = list(dict.fromkeys(name for row in measurements for name in row))
        rows = [[_number(row.get(name, "")) for name in columns] for row in measurements]
        parts += ["Measured beside them, without a bound:\n", _table(columns, rows)]
    return "\n".join(parts)


def _demo(result: dict[str, Any]) -> str:
    rows = [
        (adapter, METRIC_NAMES.get(name, name), _interval(metric, base=True), _interval(metric))
        for adapter, measured in result["figures"].items()
        for name, metric in measured.items()
    ]
    seconds = [(step, _number(value)) for step, value in result["seconds"].items()]
    return "\n".join(
        [
            "## demo\n",
            "What `make demo` reached on held-out examples, with 95 % intervals.\n",
            _table(("adapter", "metric", "base model", "with the adapter"), rows),
            _table(("step", "seconds"), seconds),
        ]
    )


def _interval(metric: dict[str, Any], *, base: bool = False) -> str:
    prefix = "base_" if base else ""
    value, low, high = (metric.get(prefix + name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    if low is None or high is None:
        return _number(value)
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def main() -> int:
    """Write the page. Returns the exit code."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
