"""`python -m bench NAME [arguments]` runs a benchmark.

`--all` runs all, `--record` adds what was measured last to the history and rewrites the docs' page,
as `--all` does in the end; `--check` compares it with the history.

Exit codes: 0 every claim holds, 1 one does not, a benchmark failed or a ratio fell, 2 no such
benchmark.
"""

import importlib
import sys
from collections.abc import Sequence

from bench import history, render

BENCHMARKS = (
    "overhead", "profile", "loadtests", "adapters", "finetune", "platform", "overload",
)  # fmt: skip
ON_PAPER = ("scaling",)
"""They measure nothing, and write a page of their own."""
KNOWN = (*BENCHMARKS, *ON_PAPER)


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for. Returns the exit code."""
    match list(arguments):
        case ["--all"]:
            codes = [_run([name]) for name in BENCHMARKS]
            return max(*codes, _record())
        case ["--record"]:
            return _record()
        case ["--check"]:
            return history.check()
        case [name, *_] if name in KNOWN:
            return _run(arguments)
    told = f"give --all, --record, --check or one of: {', '.join(KNOWN)}"
    print(told, file=sys.stderr)
    return 2


def _record() -> int:
    print(f"{history.record()} reports added to {history.HISTORY}")
    return render.main()


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments
    code: int = importlib.import_module(f"bench.{name}").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
