"""What was measured before: a line for each report, and whether the newest ones fall behind.

The lines lie beside the page, docs/benchmarks.jsonl: a record that `make clean` removed, or that
each clone began anew, would have nothing to compare with. Only figures of like machines and of the
same form of a benchmark are compared, and only ratios: seconds are the machine's of that hour.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, ROOT

HISTORY = ROOT / "docs" / "benchmarks.jsonl"
KEPT = ("name", "measured", "machine", "versions", "commit", "short", "claims")
LIKE = ("cpu", "cores", "memory_gib")
"""What makes two machines alike; kernels come and go."""
RECENT = 5
"""Earlier reports that the newest is compared with."""
ALONE = 0.1
"""By so much of its value a ratio may fall where nothing says how it spreads: repeats of equal
work were that far apart on two cores."""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Fall:
    """A ratio that is worse than before by more than its noise."""

    name: str
    claim: str
    value: float
    before: float
    noise: float
    commit: str
    """That it is compared with, the newest of them."""

    def line(self) -> str:
        """For a terminal."""
        return (
            f"FALLS: {self.name}: {self.claim}: {self.value:.4g}, before {self.before:.4g} "
            f"(noise {self.noise:.2g}), since commit {self.commit[:12]}"
        )


def read(path: Path = HISTORY) -> list[Result]:
    """The lines, the oldest first."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def results(folder: Path = RESULTS) -> list[Result]:
    """The last report of each benchmark that was run here."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [{key: result[key] for key in KEPT if key in result} for result in found]


def record(folder: Path = RESULTS, path: Path = HISTORY) -> int:
    """Append the reports that are not in the history yet. Returns how many."""
    known = {_identity(line) for line in read(path)}
    new = [result for result in results(folder) if _identity(result) not in known]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(result) + "\n" for result in new)
    return len(new)


def _identity(result: Result) -> tuple[str, str, str]:
    return result["name"], result.get("measured", ""), result["commit"]


def compared(reports: Iterable[Result]) -> Iterator[tuple[Result, Sequence[Result]]]:
    """The newest report of each benchmark, form and kind of machine, and those before it."""
    alike: dict[tuple[Any, ...], dict[tuple[str, str, str], Result]] = defaultdict(dict)
    for report in reports:
        machine = tuple(report["machine"].get(key) for key in LIKE)
        key = (report["name"], report.get("short", False), machine)
        alike[key][_identity(report)] = report
    for group in alike.values():
        *before, newest = sorted(group.values(), key=lambda report: report.get("measured", ""))
        yield newest, before[-RECENT:]


def falls(newest: Result, before: Sequence[Result]) -> list[Fall]:
    """Ratios of the newest report that are worse than before by more than their noise."""
    found = []
    for claim in newest["claims"]:
        earlier = [
            (one, report)
            for report in before
            for one in report["claims"]
            if one["claim"] == claim["claim"]
        ]
        if claim["unit"] or not earlier:
            continue
        values = [one["value"] for one, _ in earlier]
        reference = statistics.median(values)
        noise = _noise(claim, [one for one, _ in earlier], reference)
        worse = reference - claim["value"]
        if claim["claim"].endswith("at most"):
            worse = -worse
        if worse > noise:
            commit = earlier[-1][1]["commit"]
            fall = (newest["name"], claim["claim"], claim["value"], reference, noise, commit)
            found.append(Fall(*fall))
    return found


def _noise(claim: Result, earlier: Sequence[Result], reference: float) -> float:
    """How far two measurements of the same thing may be apart.

    Of two 95 % intervals the root of their squared half-widths; of a history the doubled standard
    deviation. The wider one: an interval knows nothing of the hour, three reports little of all.
    """
    widths = [_half(one) for one in earlier]
    own = _half(claim)
    known = [width for width in widths if width is not None]
    within = None
    if own is not None and known:
        within = (own**2 + statistics.median(known) ** 2) ** 0.5
    between = None
    if len(earlier) >= 3:
        between = 2 * statistics.stdev(one["value"] for one in earlier)
    told = [noise for noise in (within, between) if noise is not None]
    return max(told) if told else ALONE * abs(reference)


def _half(claim: Result) -> float | None:
    interval = claim.get("interval")
    return None if interval is None else float(interval[1] - interval[0]) / 2


def check(folder: Path = RESULTS, path: Path = HISTORY) -> int:
    """Tell what fell behind. Returns the exit code: 1 when something did."""
    fallen: list[Fall] = []
    pairs = list(compared([*read(path), *results(folder)]))
    for newest, before in pairs:
        fallen += falls(newest, before)
    for fall in fallen:
        print(fall.line())
    alone = [newest["name"] for newest, before in pairs if not before]
    if alone:
        print(f"nothing to compare with yet: {', '.join(sorted(alone))}", file=sys.stderr)
    print(f"{len(pairs) - len(alone)} of {len(pairs)} reports compared, {len(fallen)} ratios fell")
    return 1 if fallen else 0
