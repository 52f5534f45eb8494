"""`python -m bench NAME [arguments]`, or `--all`: run benchmarks, then rewrite the docs' page.

Exit codes: 0 every claim holds, 1 one does not or a benchmark failed, 2 no such benchmark.
"""

import importlib
import sys
from collections.abc import Sequence

from bench import render

BENCHMARKS = ("overhead", "adapters", "finetune", "platform", "overload")
ON_PAPER = ("scaling",)
"""They measure nothing, and write a page of their own."""


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark with its arguments, or all. Returns the exit code."""
    if list(arguments) == ["--all"]:
        codes = [_run([name]) for name in BENCHMARKS]
        render.main()
        return max(codes)
    known = (*BENCHMARKS, *ON_PAPER)
    if not arguments or arguments[0] not in known:
        print(f"give --all or one of: {', '.join(known)}", file=sys.stderr)
        return 2
    return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments
    code: int = importlib.import_module(f"bench.{name}").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
