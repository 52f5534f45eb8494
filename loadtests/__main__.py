"""`python -m loadtests [run] --host URL --scenario NAME|FILE`: run a load and judge it.

Other commands: capacity (the highest rate within the limits), compare (two servers in
alternation), worker (send a share of another machine's load), overhead (the load generator's own).

Exit codes: 0 every limit holds, 1 one fails or the server can't be reached, 2 bad input,
130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loadtests import capacity, compare, overhead
from loadtests.options import MASTER_PORT, add_scenario, add_target, scenario_of, target_of
from loadtests.report import write_report
from loadtests.run import RunError, run_scenario, worker_command
from loadtests.scenario import ScenarioError
from loadtests.tables import summary

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    commands: dict[str, Callable[[list[str]], bool]] = {
        "run": run,
        "capacity": capacity.main,
        "compare": compare.main,
        "overhead": overhead.main,
        "worker": worker,
    }
    named = arguments[:1] and arguments[0] in commands
    command, rest = (commands[arguments[0]], arguments[1:]) if named else (run, arguments)
    try:
        return OK if command(rest) else FAILED
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except RunError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def run(arguments: list[str]) -> bool:
    """One scenario; whether every limit holds."""
    options = _parser().parse_args(arguments)
    name, scenario = scenario_of(options)
    target = target_of(options)
    if options.master:
        target = replace(target, bind=(options.bind_host, options.port))
    folder = Path(options.out)
    result = run_scenario(name, scenario, target, folder)
    html = Path(options.html) if options.html is not None else folder / f"{name}.html"
    write_report(result, folder, html)
    print(f"{name}: {scenario.description}")
    print(summary(result))
    print(f"report: {html}, {folder / name}_stats.csv, {folder / name}_outcomes.jsonl")
    return result.holds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modiste loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target(parser)
    add_scenario(parser)
    parser.add_argument("--html", help="where the HTML report goes; default: in --out")
    parser.add_argument(
        "--master",
        action="store_true",
        help="wait for --workers workers of other machines, and merge what they find",
    )
    parser.add_argument("--bind-host", default="*", help="--master: where it listens")
    parser.add_argument("--port", type=int, default=MASTER_PORT, help="--master: where it listens")
    return parser


def worker(arguments: list[str]) -> bool:
    """Join a master and do as it says until it ends."""
    parser = argparse.ArgumentParser(prog="modiste loadtest worker", description=worker.__doc__)
    parser.add_argument("--master", required=True, help="the machine with `--master`")
    parser.add_argument("--port", type=int, default=MASTER_PORT)
    options = parser.parse_args(arguments)
    command = worker_command(options.master, options.port)
    os.execv(command[0], command)  # noqa: S606  # no shell: Locust in our place, its signals too


if __name__ == "__main__":
    sys.exit(main())
