"""Whether the right adapter answers, and when: mix-ups, spoiled adapters, crashes, promotions,
cold versions, many adapters.

All but the last two run on a tiny random base, where hundreds of versions can be made and asked in
minutes; what an adapter answers alone is computed by transformers and peft, not by the server.
"""

import sys
from collections.abc import Sequence

from bench import crash, effect, many, mixup, switch
from bench.parts import run_parts

PARTS = {
    "mixup": mixup.measure,
    "effect": effect.measure,
    "crash": crash.measure,
    "switch": switch.measure,
    "many": many.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    return run_parts("adapters", PARTS, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
