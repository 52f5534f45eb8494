"""One run of a scenario: Locust in a child process, and what it left judged."""

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from loadtests.judging import Judgement, judge
from loadtests.outcomes import Outcome, read_outcomes
from loadtests.plan import arrivals_planned
from loadtests.sampling import Sample, read_samples
from loadtests.scenario import Scenario, ScenarioError
from loadtests.streaming import Client
from loadtests.workload import read_passages

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_OUR_ERROR = "/ERROR/locustfile: "


class RunError(Exception):
    """A run that says nothing about the server; the message has the reason."""


@dataclass(frozen=True)
class Target:
    """The server that is loaded, and from where."""

    host: str
    api_key: str | None = None
    model: str | None = None
    """None: the first that the server lists."""
    workers: int = 1
    """Processes of the load generator on this machine, or of others where `bind` is given."""
    bind: tuple[str, int] | None = None
    """Where workers of other machines find their master."""
    sample_s: float = 2.0


@dataclass(frozen=True)
class Result:
    """What a run found."""

    name: str
    scenario: Scenario
    host: str
    began: str
    server: Mapping[str, Any]
    """What it says at /version; empty where it says nothing."""
    outcomes: list[Outcome]
    samples: list[Sample]
    judgements: list[Judgement]

    @property
    def holds(self) -> bool:
        return all(judgement.holds for judgement in self.judgements)


def check_target(host: str) -> None:
    """Raises ScenarioError."""
    if not host.startswith(("http://", "https://")):
        raise ScenarioError(f"--host: {host!r} is not an http(s) URL")


def check_inputs(scenario: Scenario) -> int | None:
    """Read what the scenario names, before anything is sent. Raises ScenarioError.

    How many requests are planned; None in a closed loop.
    """
    read_passages(scenario.prompts)
    return arrivals_planned(scenario)


def server_version(target: Target) -> dict[str, Any]:
    """What the server says of itself; raises RunError where nobody answers."""
    client = Client(target.host, api_key=target.api_key, connections=1, timeout_s=10)
    try:
        client.models()
    except (OSError, ValueError) as error:
        raise RunError(f"{target.host}: {error}") from error
    try:
        return client.ask("GET", "/version")
    except (OSError, ValueError):
        return {}


def run_scenario(name: str, scenario: Scenario, target: Target, folder: Path) -> Result:
    """Send the load and judge it. Files in `folder` begin with the name.

    Raises:
        ScenarioError: it can't be run.
        RunError: there is no server, or Locust ended without outcomes.
    """
    planned = check_inputs(scenario)
    server = server_version(target)
    folder.mkdir(parents=True, exist_ok=True)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    outcomes_path = folder / f"{name}_outcomes.jsonl"
    samples_path = folder / f"{name}_samples.jsonl"
    for path in (outcomes_path, samples_path):
        path.unlink(missing_ok=True)
    command = _command(name, scenario, target, folder)
    command += ["--outcomes", str(outcomes_path), "--samples", str(samples_path)]
    environment = dict(os.environ)
    if target.api_key is not None:
        environment["MODISTE_API_KEY"] = target.api_key
    log_path = folder / f"{name}.log"
    code = _watched(command, environment, log_path)
    if not outcomes_path.exists():
        raise RunError(f"{_reason(log_path)}locust ended with {code}; its log is {log_path}")
    outcomes, samples = read_outcomes(outcomes_path), read_samples(samples_path)
    judgements = judge(scenario, outcomes, planned, samples)
    return Result(name, scenario, target.host, began, server, outcomes, samples, judgements)


def _reason(log_path: Path) -> str:
    """What our own part said in Locust's log, if it did."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.partition(_OUR_ERROR)[2] for line in lines if _OUR_ERROR in line]
    return f"{said[0]}\n" if said else ""


def _command(name: str, scenario: Scenario, target: Target, folder: Path) -> list[str]:
    table = folder / f"{name}_scenario.yaml"  # as it was run, whatever the file said
    plain = scenario.model_dump(mode="json", exclude_unset=True)
    table.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += ["--only-summary", "--host", target.host, "--scenario", str(table)]
    command += ["--csv", str(folder / name), "--html", str(folder / f"{name}_locust.html")]
    command += ["--sample-s", str(target.sample_s)]
    command += ["--stop-timeout", str(math.ceil(scenario.timeout_s))]
    if scenario.users is not None:
        command += ["--users", str(scenario.users), "--spawn-rate", str(scenario.users)]
    elif target.workers > 1:
        command += ["--users", str(target.workers), "--spawn-rate", str(target.workers)]
    if target.model is not None:
        command += ["--model", target.model]
    return command + _roles(target)


def _roles(target: Target) -> list[str]:
    if target.bind is not None:
        host, port = target.bind
        roles = ["--master", "--expect-workers", str(target.workers)]
        return [*roles, "--master-bind-host", host, "--master-bind-port", str(port)]
    if target.workers == 1:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = str(free.getsockname()[1])
    bind = ["--master-bind-host", "127.0.0.1", "--master-bind-port", unused]
    return ["--processes", str(target.workers), *bind, "--master-port", unused]


def worker_command(master: str, port: int) -> list[str]:
    """What joins a master on another machine, which tells it everything else."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--worker"]
    return [*command, "--master-host", master, "--master-port", str(port)]


def _watched(command: list[str], environment: dict[str, str], log_path: Path) -> int:
    """Run Locust to its end; it is told when we are."""
    with log_path.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            child.wait(30)
            raise
