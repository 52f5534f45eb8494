"""Fine-tuning jobs while workers and the server are killed with -9 at random.

Two workers and one server share a home. Whatever is killed starts again. At the end every job must
have ended, once, with each of its events told once; those that succeeded with one version and one
result file each. None may have failed but by losing its workers too often.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import openai

from adapters.registry import Registry
from bench.harness import Report, at_least, at_most
from bench.servers import Launch, ServerError, free_port, session_processes
from bench.tiny import launch
from service.files import derived_id
from tests.made import add_tiny_base

JOBS, JOBS_SHORT = 100, 12
KILLS_S, KILLS_S_SHORT = 600.0, 60.0
WORKER_EVERY_S, SERVER_EVERY_S = (10.0, 40.0), (60.0, 120.0)
LIMIT_S, START_LIMIT_S, STOP_LIMIT_S = 3600.0, 300.0, 30.0
LEASE_S = 5
ENDED = ("succeeded", "failed", "cancelled")
SETTINGS = {
    "training.max_steps": 6, "training.epochs": 50, "training.batch_tokens": 128,
    "training.checkpoint_every_steps": 2, "evaluation.max_generated": 2,
    "evaluation.max_new_tokens": 4,
}  # fmt: skip


@dataclass
class Victim:
    """A process that starts again after each kill."""

    launch: Launch
    log: Path
    every_s: tuple[float, float]
    kills: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    due: float = field(default=float("inf"))

    def start(self, dice: random.Random) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.launch.command, env=self.launch.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.due = time.monotonic() + dice.uniform(*self.every_s)

    def kill(self) -> None:
        """The first process alone; what it leaves, a container's end would end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.kills += 1
            _end_all(self.process.pid)

    def end(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT_S)
        _end_all(self.process.pid)


def _end_all(session: int) -> None:
    for left in session_processes(session):
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def measure(report: Report, folder: Path, *, short: bool) -> None:
    """Queue the jobs, kill for a while, wait for the last, look at each."""
    shutil.rmtree(folder, ignore_errors=True)
    registry = Registry.open(folder / "home")
    add_tiny_base(registry)
    seed = random.randrange(10**6)  # noqa: S311  # whom to kill when
    dice = random.Random(seed)  # noqa: S311
    victims = _victims(registry, folder)
    count, kills_s = (JOBS_SHORT, KILLS_S_SHORT) if short else (JOBS, KILLS_S)
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{victims[0].launch.port}/v1", api_key="none", timeout=30,
        max_retries=2,
    )  # fmt: skip
    try:
        victims[0].start(dice)
        ids = _queue(client, count)
        for victim in victims[1:]:
            victim.start(dice)
        _ride(client, victims, dice, kills_s, ids)
        _claim(report, client, ids, victims, seed)
        _claim_results(report, client, registry, ids)
    finally:
        for victim in victims:
            victim.end()


def _victims(registry: Registry, folder: Path) -> list[Victim]:
    """The server, then two workers."""
    home, logs = registry.home.root, folder / "logs"
    logs.mkdir()
    server = launch("server", home, free_port(), {"worker_jobs": 0})
    command = [
        sys.executable, "-m", "service.jobs.worker", f"--home={home}", f"--lease-s={LEASE_S}"
    ]  # fmt: skip
    workers = [Launch(f"worker-{number}", command, server.environment, 0) for number in range(2)]
    return [
        Victim(server, logs / "server.log", SERVER_EVERY_S),
        *(Victim(one, logs / f"{one.label}.log", WORKER_EVERY_S) for one in workers),
    ]


def _queue(client: openai.OpenAI, count: int) -> list[str]:
    lines = "".join(
        f'{{"prompt": "say {n}", "completion": "the file {n} is open"}}\n' for n in range(60)
    )
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            file = client.files.create(file=("a.jsonl", lines.encode()), purpose="fine-tune")
            break
        except openai.APIConnectionError:
            if time.monotonic() > deadline:
                raise ServerError("the server did not start; see its log") from None
            time.sleep(1)
    method = {"type": "supervised", "modiste": {"settings": SETTINGS}}
    return [
        client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, suffix=f"job-{number}", seed=number,
            extra_body={"method": method},
        ).id
        for number in range(count)
    ]  # fmt: skip


def _ride(
    client: openai.OpenAI, victims: list[Victim], dice: random.Random, kills_s: float,
    ids: list[str],
) -> None:  # fmt: skip
    """Kill and start again until the time is over and the last job has ended."""
    began = time.monotonic()
    left = set(ids)
    while left:
        now = time.monotonic()
        if now - began > LIMIT_S:
            print(f"{len(left)} jobs have not ended after {LIMIT_S:g} s", file=sys.stderr)
            return
        for victim in victims:
            ended = victim.process is None or victim.process.poll() is not None
            if ended or (now > victim.due and now - began < kills_s):
                victim.kill()
                victim.start(dice)
        with suppress(openai.APIError):  # the server is away
            left -= {
                job.id for job in client.fine_tuning.jobs.list(limit=100) if job.status in ENDED
            }
        time.sleep(0.5)


def _claim(
    report: Report, client: openai.OpenAI, ids: list[str], victims: list[Victim], seed: int
) -> None:
    client = client.with_options(max_retries=20)  # the server may be about to start
    jobs = {job.id: job for job in client.fine_tuning.jobs.list(limit=100)}
    lost = [id_ for id_ in ids if id_ not in jobs]
    found = [jobs[id_] for id_ in ids if id_ in jobs]
    unended = [job for job in found if job.status not in ENDED]
    unexplained = [
        job for job in found if job.status == "failed" and not (job.error and job.error.message)
    ]
    twice = 0
    broken: list[str] = []
    for job in found:
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        # that a job waits may be told again when it waits again
        messages = Counter(e.message for e in events if not e.message.startswith("Waiting: "))
        twice += sum(times - 1 for times in messages.values())
        if job.status == "succeeded":
            steps = sorted(int(m[1]) for e in events if (m := re.match(r"Step (\d+)", e.message)))
            if steps != list(range(1, int(SETTINGS["training.max_steps"]) + 1)):
                broken.append(f"{job.id}: steps {steps}")
    results = Counter(job.fine_tuned_model for job in found if job.status == "succeeded")
    for line in broken[:5]:
        print(line, file=sys.stderr)
    report.add(at_least("jobs that ended", len(found) - len(unended), len(ids)))
    report.add(at_most("jobs that were lost", len(lost), 0))
    report.add(at_most("failed jobs without a reason", len(unexplained), 0))
    report.add(at_most("events that were told twice", twice, 0))
    report.add(at_most("succeeded jobs without each step told once", len(broken), 0))
    report.add(at_most("models that two jobs made", results.total() - len(results), 0))
    statuses: Counter[str] = Counter(job.status for job in found)
    codes = Counter(job.error.code for job in found if job.status == "failed" and job.error)
    print(f"codes of failures: {dict(codes)}", file=sys.stderr)
    report.measurements.append(
        {
            "part": "kills", "jobs": len(ids), **dict(statuses), "seed": seed,
            "kills of the server": victims[0].kills,
            "kills of workers": sum(victim.kills for victim in victims[1:]),
            "reasons of failures": "; ".join(f"{code}: {codes[code]}" for code in sorted(codes)),
        }
    )  # fmt: skip


def _claim_results(
    report: Report, client: openai.OpenAI, registry: Registry, ids: list[str]
) -> None:
    """What came of each job is there once."""
    client = client.with_options(max_retries=20)
    jobs = [job for job in client.fine_tuning.jobs.list(limit=100) if job.id in ids]
    done = [job for job in jobs if job.status == "succeeded"]
    lost = [job for job in jobs if job.error and job.error.code == "worker_lost"]
    files = [file.id for file in client.files.list(purpose="fine-tune-results")]
    own = {job.id: derived_id(job.id, "step_metrics") for job in jobs}
    without = [job.id for job in done if job.result_files != [own[job.id]] or
               own[job.id] not in files]  # fmt: skip
    strangers = set(files) - set(own.values())
    versions: dict[str, list[str]] = {}
    for job in done:
        name = registry.find(job.fine_tuned_model or "").name
        versions[job.id] = [
            version.reference for version in registry.versions(name)
            if version.manifest.checkpoint is None
        ]  # fmt: skip
    several = {id_: found for id_, found in versions.items() if len(found) != 1}
    for line in [*without[:5], *sorted(strangers)[:5], *list(several.items())[:5]]:
        print(line, file=sys.stderr)
    others = len(ids) - len(done) - len(lost)
    report.add(at_most("jobs that neither succeeded nor lost their workers", others, 0))
    report.add(at_most("succeeded jobs without a result file of their own", len(without), 0))
    report.add(at_most("result files that are no job's", len(strangers), 0))
    report.add(at_most("succeeded jobs with another number of versions than 1", len(several), 0))
