"""Whether the right adapter answers, and when: mix-ups, spoiled adapters, crashes, promotions,
cold versions, many adapters.

All but the last two run on a tiny random base, where hundreds of versions can be made and asked in
minutes; what an adapter answers alone is computed by transformers and peft, not by the server.
"""

import argparse
import sys
from collections.abc import Sequence

from bench import crash, effect, many, mixup, switch
from bench.client import LoadError
from bench.harness import RESULTS, Report, quick
from bench.servers import ServerError

PARTS = {
    "mixup": mixup.measure,
    "effect": effect.measure,
    "crash": crash.measure,
    "switch": switch.measure,
    "many": many.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench adapters", description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), help="one part only")
    options = parser.parse_args(argv)
    report = Report("adapters")
    try:
        for name, measure in PARTS.items():
            if options.only in (None, name):
                measure(report, RESULTS / "adapters" / name, short=quick())
    except (ServerError, LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    return report.write()


if __name__ == "__main__":
    sys.exit(main())
