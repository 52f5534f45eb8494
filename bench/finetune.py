"""Training: speed, memory and quality beside TRL's SFTTrainer; preflight; kills and resuming."""

import sys
from collections.abc import Sequence

from bench import faults, resume, sets, training
from bench.parts import run_parts

PARTS = {"speed": training.measure, "faults": faults.measure, "resume": resume.measure}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    return run_parts("finetune", {**PARTS, **sets.parts()}, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
