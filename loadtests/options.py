"""Options that the commands of `modiste loadtest` share."""

import argparse
import os
from pathlib import Path

from loadtests.run import Target, check_target
from loadtests.scenario import (
    Scenario,
    ScenarioError,
    load_scenario,
    scenario_names,
    scenario_path,
)

MASTER_PORT = 5557


def add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenario",
        required=True,
        help=f"a file, or one of: {', '.join(scenario_names())}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the scenario, with dotted keys: --set slo.ttft_p95_ms=500",
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Which server, how it is asked, and where the reports go."""
    parser.add_argument("--host", required=True, help="http://HOST:PORT of the server")
    parser.add_argument("--model", help="for chat and generate; default: the server's first")
    parser.add_argument("--out", default="build/loadtest", help="folder of the reports")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that send the load; default: 1"
    )
    parser.add_argument(
        "--sample-s",
        type=float,
        default=2.0,
        help="how often the server's /metrics are read, seconds; 0: never",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("MODISTE_API_KEY"),
        help="default: the variable MODISTE_API_KEY, which other users of the machine can't see",
    )


def target_of(options: argparse.Namespace, host: str | None = None) -> Target:
    """Raises ScenarioError."""
    chosen = options.host if host is None else host
    check_target(chosen or "")
    if options.workers < 1:
        raise ScenarioError(f"--workers: {options.workers}; at least 1")
    return Target(
        host=chosen,
        api_key=options.api_key,
        model=options.model,
        workers=options.workers,
        sample_s=options.sample_s,
    )


def scenario_of(options: argparse.Namespace) -> tuple[str, Scenario]:
    """Its name and itself. Raises ScenarioError."""
    path: Path = scenario_path(options.scenario)
    return path.stem, load_scenario(path, options.set)
