"""Training: how fast, in how much memory, and how well, beside TRL's SFTTrainer."""

import os
import sys
from collections.abc import Sequence

from bench import sets, training
from bench.parts import run_parts

PARTS = {"speed": training.measure, "sets": sets.measure}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    parts = dict(PARTS)
    if sets.PLACE not in os.environ:
        print(f"sets: left out; {sets.PLACE} names the folder that has them", file=sys.stderr)
        del parts["sets"]
    return run_parts("finetune", parts, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
