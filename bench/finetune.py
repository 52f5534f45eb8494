"""Training: how fast, in how much memory, and how well, beside TRL's SFTTrainer."""

import argparse
import sys
from collections.abc import Sequence

from bench import sets, training
from bench.harness import RESULTS, Report, quick
from bench.servers import ServerError

PARTS = {"speed": training.measure, "sets": sets.measure}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench finetune", description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), help="one part only")
    options = parser.parse_args(argv)
    report = Report("finetune")
    try:
        for name, measure in PARTS.items():
            if options.only in (None, name):
                measure(report, RESULTS / "finetune" / name, short=quick())
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return report.write()


if __name__ == "__main__":
    sys.exit(main())
