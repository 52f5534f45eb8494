"""What the task routes gain over chats: lists, labels, shared prompts; and a replayed trace."""

import sys
from collections.abc import Sequence

from bench import labels, lists, shared, trace
from bench.parts import run_parts

PARTS = {"lists": lists.measure, "labels": labels.measure, "shared": shared.measure}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    return run_parts("loadtests", {**PARTS, **trace.parts()}, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
