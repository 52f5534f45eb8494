"""Benchmarks of several parts; each part is a report of its own and may be measured again alone."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.client import LoadError
from bench.harness import RESULTS, Report, quick
from bench.servers import ServerError

Measure = Callable[..., Any]
"""Of a report, a folder and `short`: measures and claims."""


def run_parts(
    benchmark: str, parts: Mapping[str, Measure], argv: Sequence[str] | None, about: str | None
) -> int:
    """Measure all parts, or the one that is asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"bench {benchmark}", description=about)
    parser.add_argument("--only", choices=list(parts), help="one part only")
    only = parser.parse_args(argv).only
    return max(
        _run(benchmark, name, measure) for name, measure in parts.items() if only in (None, name)
    )


def _run(benchmark: str, name: str, measure: Measure) -> int:
    report = Report(f"{benchmark}-{name}")
    try:
        measure(report, RESULTS / benchmark / name, short=quick())
    except (ServerError, LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    return report.write()
