"""`python -m loadtests --host URL --scenario NAME|FILE`: run a load and judge it.

Exit codes: 0 every limit holds, 1 one fails or the server can't be reached, 2 bad input,
130 interrupted.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from loadtests.report import judge, read_outcomes, summary
from loadtests.scenario import (
    Scenario,
    ScenarioError,
    load_scenario,
    scenario_names,
    scenario_path,
)
from loadtests.streaming import Client
from loadtests.workload import Workload

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main(argv: list[str] | None = None) -> int:
    """Run one scenario. Returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        path = scenario_path(options.scenario)
        scenario = load_scenario(path)
        Workload(scenario, chat_model="")  # its prompts must be readable before anything is sent
        if not options.host.startswith(("http://", "https://")):
            raise ScenarioError(f"--host: {options.host!r} is not an http(s) URL")
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    client = Client(options.host, api_key=options.api_key, connections=1, timeout_s=10)
    try:
        model = options.model if options.model is not None else client.first_model()
    except (OSError, ValueError) as error:
        print(f"{options.host}: {error}", file=sys.stderr)
        return FAILED
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _run(options, path, scenario, model, folder / path.stem)
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modiste loadtest", description=__doc__)
    parser.add_argument("--host", required=True, help="http://HOST:PORT of the server")
    parser.add_argument(
        "--scenario", required=True, help=f"a file, or one of: {', '.join(scenario_names())}"
    )
    parser.add_argument("--model", help="for chat and generate; default: the server's first")
    parser.add_argument("--html", help="where Locust's HTML report goes; default: in --out")
    parser.add_argument("--out", default="build/loadtest", help="folder of the reports")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("MODISTE_API_KEY"),
        help="default: the variable MODISTE_API_KEY, which other users of the machine can't see",
    )
    return parser


def _run(
    options: argparse.Namespace, path: Path, scenario: Scenario, model: str, prefix: Path
) -> int:
    outcomes_path = prefix.with_name(f"{prefix.name}_outcomes.jsonl")
    outcomes_path.unlink(missing_ok=True)
    html = options.html if options.html is not None else f"{prefix}.html"
    command = _locust_command(options.host, path, scenario, prefix)
    command += ["--model", model, "--outcomes", str(outcomes_path), "--html", html]
    environment = dict(os.environ)
    if options.api_key is not None:
        environment["MODISTE_API_KEY"] = options.api_key
    log_path = prefix.with_name(f"{prefix.name}.log")
    with log_path.open("w", encoding="utf-8") as log:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
    if not outcomes_path.exists():
        print(f"locust ended with {child.returncode}; its log is {log_path}", file=sys.stderr)
        return FAILED
    outcomes = read_outcomes(outcomes_path)
    judgements = judge(scenario, outcomes)
    print(f"{path.stem}: {scenario.description}")
    print(summary(scenario, outcomes, judgements))
    print(f"report: {html}, {prefix}_stats.csv, {outcomes_path}")
    holds = all(judgement.holds for judgement in judgements)
    result = {
        "scenario": path.stem,
        "holds": holds,
        "limits": [asdict(judgement) for judgement in judgements],
    }
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return OK if holds else FAILED


def _locust_command(host: str, path: Path, scenario: Scenario, prefix: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += ["--only-summary", "--host", host, "--scenario", str(path), "--csv", str(prefix)]
    if scenario.users is not None:
        users, length = str(scenario.users), f"{math.ceil(scenario.length_s)}s"
        command += ["--users", users, "--spawn-rate", users, "--run-time", length]
        command += ["--stop-timeout", f"{math.ceil(scenario.timeout_s)}"]
    return command


if __name__ == "__main__":
    sys.exit(main())
