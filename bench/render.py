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


def render(results: Path = RESULTS, demo: Path = DEMO, before: str = "") -> str:
    """The page. The same files give the same page.

    Args:
        before: the page as it is; a section of it that was not measured again stays.
    """
    sections = {title.partition("\n")[0]: f"## {title}" for title in before.split("\n## ")[1:]}
    if demo.exists():
        sections["demo"] = _demo(json.loads(demo.read_text(encoding="utf-8")))
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        sections[result["name"]] = _benchmark(result)
    ordered = sorted(sections, key=lambda name: (name != "demo", name))
    shown = [sections[name].rstrip("\n") + "\n" for name in ordered]
    return "\n".join([HEADER, *(shown or [NOTHING])])


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
        f"{' with changes' if result['commit'].endswith('+changes') else ''}"
        f"{'; the short form' if result.get('short') else ''}.\n",
        _table(("claim", "bound", "measured", "unit", ""), claims),
    ]
    measurements = result.get("measurements", [])
    if measurements:
        parts.append("Measured beside them, without a bound:\n")
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for row in measurements:
        alike.setdefault(tuple(row), []).append([_number(value) for value in row.values()])
    parts += [_table(columns, rows) for columns, rows in alike.items()]
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
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(render(before=before), encoding="utf-8")
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
