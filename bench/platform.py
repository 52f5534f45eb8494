"""The platform: a start, jobs while processes are killed, batches beside chats."""

import sys
from collections.abc import Sequence

from bench import batch, kills, start
from bench.parts import run_parts

PARTS = {"start": start.measure, "kills": kills.measure, "batch": batch.measure}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    return run_parts("platform", PARTS, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
