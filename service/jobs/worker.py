"""`modiste worker`: takes fine-tuning jobs from the queue and lets the trainer do them.

Each job has a folder of its own, HOME/jobs/ID, in which `finetune run --resume` works as a child
process. What it writes there is told as events; what the caller wants, and a sign of life, go by
the lease. A worker that is told to end stops its children at their next step and gives the jobs
back; one that is killed loses its leases, and another goes on from the last checkpoint.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import psutil

from adapters.errors import AdapterError
from adapters.registry import Registry, Version
from service.children import NICENESS, die_with_parent
from service.database import JobRow
from service.errors import ServiceError
from service.files import About, Files
from service.jobs.queue import (
    CANCEL,
    CANCELLED,
    FAILED,
    LEASE_S,
    PAUSE,
    SUCCEEDED,
    Jobs,
    LeaseLost,
    Outcome,
    Told,
)
from service.jobs.results import checkpoint_metrics, metrics_csv
from service.uses import USES

logger = logging.getLogger("modiste.worker")

POLL_S = 0.5
RENEWALS = 6
"""Of a lease before it would run out."""
STOPPED = 130
"""The trainer's exit code when it was asked to stop."""
KEPT_EPOCHS = 2
"""Adapters of the ends of epochs that are models beside the final one."""
_PARAMS = {
    "data": "training_file", "data.train": "training_file", "data.test": "validation_file",
}  # fmt: skip
_GIB = 2**30


def needed_bytes(parameters: int) -> int:
    """Memory to have free before a job of a base starts: weights in float32, and a step."""
    return 4 * parameters + 2 * _GIB


@dataclass(slots=True)
class Attempt:
    """A job at work in this process's child."""

    job: JobRow
    folder: Path
    child: "subprocess.Popen[bytes]"
    stopping: str | None = None
    """Why the child was asked to stop."""
    told: int = 0
    """The last step that was told."""
    running: bool = False
    trained: bool = False
    ends: datetime | None = None
    """Expected."""
    renewed: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)

    def stop(self, why: str) -> None:
        """Ask the child to end at its next step; a second time changes nothing."""
        if self.stopping is None:
            self.stopping = why
            with suppress(ProcessLookupError):
                self.child.terminate()


class Worker:
    """Does jobs until it is told to end.

    Args:
        at_once: jobs, where memory allows.
        grace_s: for trainers to stop at their next step once `ending` is set.
    """

    def __init__(
        self,
        registry: Registry,
        at_once: int = 1,
        lease_s: float = LEASE_S,
        grace_s: float = inf,
    ) -> None:
        self.registry, self.at_once, self._grace_s = registry, at_once, grace_s
        self.id = f"worker-{os.uname().nodename}-{os.getpid()}-{uuid4().hex[:6]}"
        self.jobs = Jobs(registry.database, lease_s)
        self.files = Files(registry.database, registry.home, USES)
        self.ending = False
        self._attempts: list[Attempt] = []

    def run(self) -> None:
        """Work until `ending` is set, then give back what is not done."""
        logger.info("%s waits for jobs", self.id)
        until = inf
        while not (self.ending and not self._attempts):
            if self.ending and until == inf:
                until = time.monotonic() + self._grace_s
            for attempt in list(self._attempts):
                if self.ending:
                    attempt.stop("ending")
                if time.monotonic() > until:
                    attempt.child.kill()  # the next worker goes on from the last checkpoint
                self._look_after(attempt)
            if not self.ending and len(self._attempts) < self.at_once:
                try:
                    self._begin_next()
                except (AdapterError, ServiceError, OSError) as error:
                    logger.warning("no job was begun: %s", error)
            time.sleep(POLL_S)

    def _look_after(self, attempt: Attempt) -> None:
        try:
            if self._poll(attempt):
                self._attempts.remove(attempt)
        except LeaseLost:
            logger.warning("%s is another worker's now", attempt.job.id)
            attempt.child.kill()
            attempt.child.wait()
            self._attempts.remove(attempt)
        except (AdapterError, ServiceError) as error:  # the database or the store is away
            logger.warning("%s: %s", attempt.job.id, error)
        except Exception:  # one job must not end the others
            logger.exception("%s is given up here", attempt.job.id)
            attempt.child.kill()
            attempt.child.wait()
            self._attempts.remove(attempt)
            with suppress(LeaseLost, AdapterError):
                self.jobs.lose(attempt.job.id, self.id)

    # beginning

    def _begin_next(self) -> None:
        if not self.jobs.waiting() or not self._has_room():
            return
        job = self.jobs.lease(self.id)
        if job is None:
            return
        logger.info("begins %s", job.id)
        try:
            self._attempts.append(self._begin(job))
        except (AdapterError, ServiceError) as error:
            self._fail(job, error)

    def _has_room(self) -> bool:
        """Whether memory is left for a job of the smallest base."""
        bases = self.registry.bases()
        if not bases or not self._attempts:
            return True
        needed = needed_bytes(min(base.parameters for base in bases))
        return int(psutil.virtual_memory().available) > needed

    def _begin(self, job: JobRow) -> Attempt:
        folder = self.registry.home.jobs / job.id
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"training.keep_epochs": KEPT_EPOCHS, **job.order["settings"]}
        settings |= {
            "name": self._name(job), "project": job.project, "base": job.order["base"],
            "data.train": str(self._fetch(job, job.training_file, folder, "training")),
        }  # fmt: skip
        if job.validation_file is not None:
            place = self._fetch(job, job.validation_file, folder, "validation")
            settings["data.test"] = str(place)
        if "parent" in job.order:
            settings["parent"] = job.order["parent"]
        command = [
            sys.executable, "-m", "finetune", "run", job.order["recipe"], "--resume", "--json",
            "--folder", str(folder / "run"), "--home", str(self.registry.home.root),
            *(f"--set={name}={json.dumps(value)}" for name, value in settings.items()),
        ]  # fmt: skip
        with (folder / "printed").open("wb") as out, (folder / "log").open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                # one whose worker was killed would hold the run against the next worker
                start_new_session=True, preexec_fn=_die,  # noqa: PLW1509 - no threads
            )  # fmt: skip
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICENESS)
        return Attempt(job, folder, child)

    def _fetch(self, job: JobRow, file_id: str, folder: Path, role: str) -> Path:
        """A copy of a file's content, under a name that tells its format."""
        file = self.files.find(file_id, job.project, f"{role}_file")
        place = folder / f"{role}{Path(file.filename).suffix.lower()}"
        if not place.exists():
            partial = place.with_name(f".{place.name}.partial")
            with self.files.content(file) as content:
                shutil.copyfile(content, partial)
            partial.replace(place)
        return place

    def _name(self, job: JobRow) -> str:
        """The adapter's name: the suffix, unless that is another project's or task's."""
        wanted = job.suffix or "tuned"
        own = f"{wanted[:55]}-{sha256(job.id.encode()).hexdigest()[:8]}"
        if job.suffix is None:
            return own
        try:
            other = next(r for r in self.registry.adapters() if r.name == wanted)
        except StopIteration:
            return wanted
        task = job.order["settings"]["task"]
        return wanted if (other.project, other.task) == (job.project, task) else own

    # on the way

    def _poll(self, attempt: Attempt) -> bool:
        """Tell what is new; whether the job is done with here."""
        code = attempt.child.poll()
        now = time.monotonic()
        self._tell(attempt)
        if now - attempt.renewed > self.jobs.lease_s / RENEWALS and code is None:
            wanted = self.jobs.renew(attempt.job.id, self.id, attempt.ends)
            attempt.renewed = now
            if wanted is not None:
                attempt.stop(wanted)
        if code is None:
            return False
        self._end(attempt, code)
        return True

    def _tell(self, attempt: Attempt) -> None:
        """Tell of the steps since the last time, and of what else happened."""
        run = attempt.folder / "run"
        if not (run / "preflight.json").is_file():
            return
        entries = _entries(run / "metrics.jsonl")
        fresh = [entry for entry in entries if entry["step"] > attempt.told]
        trained = (run / "adapter").is_dir()
        if not fresh and attempt.running and trained == attempt.trained:
            return
        steps = _steps(run)
        events = [Told("running", "The files are valid, training begins")]
        events += [_metrics_event(entry, steps) for entry in fresh]
        if trained:
            events.append(Told("trained", "Training is done; the model is evaluated"))
        tokens = sum(entry["tokens"] for entry in entries)
        self.jobs.tell(attempt.job.id, self.id, events, running=True, trained_tokens=tokens)
        attempt.running, attempt.trained = True, trained
        if fresh:
            attempt.told = fresh[-1]["step"]
            attempt.ends = _expected_end(entries, steps)

    # the end

    def _end(self, attempt: Attempt, code: int) -> None:
        job = attempt.job
        if code == 0:
            self._succeed(attempt)
        elif code == STOPPED or (attempt.stopping is not None and code < 0):
            self._stopped(attempt)
        elif code < 0:
            self.jobs.lose(job.id, self.id)
        else:
            error = _told_error(attempt.folder / "printed")
            outcome = Outcome(FAILED, error=error)
            self.jobs.end(job.id, self.id, outcome)
        logger.info("%s ended with %s", job.id, code)

    def _stopped(self, attempt: Attempt) -> None:
        job = attempt.job
        wanted = self.jobs.renew(job.id, self.id)
        if wanted == CANCEL:
            self.jobs.end(job.id, self.id, Outcome(CANCELLED))
            shutil.rmtree(attempt.folder, ignore_errors=True)
        elif wanted == PAUSE:
            self.jobs.rest(job.id, self.id)
        else:
            self.jobs.give_back(job.id, self.id)

    def _succeed(self, attempt: Attempt) -> None:
        job = attempt.job
        published = json.loads((attempt.folder / "run" / "published.json").read_text())
        version = self.registry.find(published["version"])
        for kept in published.get("checkpoints", []):
            figures = checkpoint_metrics(kept["step"], kept["metrics"])
            model = kept["fine_tuned_model"]
            self.jobs.add_checkpoint(job.id, self.id, kept["step"], model, figures)
        events = [self._promote(job, version)] if job.order["promote"] else []
        made = self._result_file(attempt)
        events.append(Told("model", f"New fine-tuned model created: {version.fine_tuned_model}"))
        outcome = Outcome(SUCCEEDED, model=version.fine_tuned_model, result_file=made)
        self.jobs.end(job.id, self.id, outcome, events)

    def _promote(self, job: JobRow, version: Version) -> Told:
        """Let the version go live; what its gate forbids is told, and the job succeeds."""
        try:
            self.registry.promote(version.reference, who=job.caller, why=f"job {job.id}")
        except AdapterError as error:
            return Told("promoted", f"Not promoted: {error.message}", level="warn")
        return Told("promoted", f"{version.reference} is promoted")

    def _result_file(self, attempt: Attempt) -> str:
        """The metrics of every step as a CSV file; made once, whatever dies in between."""
        mark = attempt.folder / "result_file"
        if mark.is_file():
            return mark.read_text()
        table = attempt.folder / "step_metrics.csv"
        table.write_text(metrics_csv(_entries(attempt.folder / "run" / "metrics.jsonl")))
        about = About(attempt.job.project, "step_metrics.csv", "fine-tune-results")
        made = self.files.add(table, about)
        mark.write_text(made.id)
        return made.id

    def _fail(self, job: JobRow, error: AdapterError | ServiceError) -> None:
        code = str(getattr(error, "code", "failed"))
        told = {"code": code, "message": error.message, "param": error.param}
        with suppress(LeaseLost):
            self.jobs.end(job.id, self.id, Outcome(FAILED, error=told))


def _die() -> None:
    die_with_parent(signal.SIGKILL)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The steps of metrics.jsonl, which a resumed run writes anew; none of half a line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _steps(run: Path) -> int | None:
    try:
        plan = json.loads((run / "preflight.json").read_text())["plan"]
    except (OSError, ValueError, KeyError):
        return None
    return int(plan["steps"])


def _expected_end(entries: list[dict[str, Any]], steps: int | None) -> datetime | None:
    """When the last step will be done, by how long the last ones took."""
    last = entries[-20:]
    if steps is None or len(last) < 2:
        return None
    each = (last[-1]["time"] - last[0]["time"]) / (len(last) - 1)
    return datetime.now(UTC) + timedelta(seconds=each * max(steps - last[-1]["step"], 0))


def _metrics_event(entry: dict[str, Any], steps: int | None) -> Told:
    step, loss = entry["step"], entry["loss"]
    of = "" if steps is None else f"/{steps}"
    data = {"step": step, "train_loss": loss, "total_steps": steps}
    return Told(
        f"step-{step}", f"Step {step}{of}: training loss={loss:.4f}", type="metrics", data=data
    )


def _told_error(printed: Path) -> dict[str, Any]:
    """What the trainer says of its failure, with the names that the API has."""
    error: dict[str, Any] = {}
    with suppress(OSError, ValueError, IndexError, TypeError):
        error = json.loads(printed.read_text().strip().splitlines()[-1])["error"]
    if not error:
        return {
            "code": "trainer_failed", "param": None,
            "message": "the trainer failed; the worker's log has the reason",
        }  # fmt: skip
    param = error.get("param")
    hint = error.get("hint")
    message = f"{error['message']} ({hint})" if hint else str(error["message"])
    return {
        "code": str(error["code"]), "message": message, "param": _PARAMS.get(str(param), param)
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it gets SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="worker", description="Do fine-tuning jobs.")
    parser.add_argument("--home", type=Path, help="the home folder instead of MODISTE_HOME")
    parser.add_argument("--jobs", type=int, default=1, help="jobs at once, where memory allows")
    parser.add_argument(
        "--lease-s", type=float, default=LEASE_S,
        help="after so long without a sign of a worker another takes its jobs, seconds",
    )  # fmt: skip
    parser.add_argument(
        "--grace-s", type=float, default=inf,
        help="time for jobs to stop at their next step when told to end, seconds; default: any",
    )  # fmt: skip
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="info", choices=levels)
    # the server's own worker ends with it, however that ends
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != options.parent:  # it was gone by then
            return 0
    level = options.log_level.upper()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=level)
    worker = Worker(
        Registry.open(options.home), max(1, options.jobs), max(1.0, options.lease_s),
        max(0.0, options.grace_s),
    )  # fmt: skip

    def end(_number: int, _frame: FrameType | None) -> None:
        worker.ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
