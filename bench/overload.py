"""More requests than the engine can do: answers in time, and whose; and an hour of everything."""

import sys
from collections.abc import Sequence

from bench import fairness, goodput, soak, unharmed, vanish
from bench.parts import run_parts

PARTS = {
    "goodput": goodput.measure, "fairness": fairness.measure, "hostile": unharmed.measure,
    "vanish": vanish.measure, "soak": soak.measure,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    return run_parts("overload", PARTS, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
