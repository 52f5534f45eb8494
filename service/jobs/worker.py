"""`modiste worker`: takes fine-tuning jobs from the queue and lets the trainer do them.

It begins the next job that memory allows (`room.py`). Each has a folder of its own, HOME/jobs/ID,
in which `finetune run --resume` works as a child process. What it writes there is told as events;
what the caller wants, and a sign of life, go by the lease. A worker that is told to end stops its
children at their next step and gives the jobs back; one that is killed loses its leases, and
another goes on from the last checkpoint.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from hashlib import sha256
from math import inf
from pathlib import Path
from types import FrameType
from uuid import uuid4

from adapters.errors import AdapterError
from adapters.registry import Registry, Version
from service.children import die_with_parent
from service.database import JobRow
from service.errors import BadRequest, ServiceError
from service.files import About, Files
from service.jobs.attempt import (
    Attempt,
    expected_end,
    metrics_event,
    planned_steps,
    step_entries,
    told_error,
)
from service.jobs.executors import STOPPED, Executor, Local, RayJobs
from service.jobs.queue import LEASE_S, Jobs, LeaseLost
from service.jobs.results import checkpoint_metrics, metrics_csv
from service.jobs.room import Lack, Need, Patience, gpu_memory, host_memory, lack, needed
from service.jobs.states import (
    CANCEL,
    CANCELLED,
    FAILED,
    PAUSE,
    SUCCEEDED,
    Outcome,
    Told,
)
from service.uses import USES

logger = logging.getLogger("modiste.worker")

POLL_S = 0.5
RENEWALS = 6
"""Of a lease before it would run out."""
LOOK_AGAIN_S = 5.0
"""After a look at jobs none of which had room."""
LOOKED_AT = 50
"""Jobs in line that are looked at for one that has room."""
_CHOOSING = {"training.best_by", "training.patience"}
"""Settings by which the validation file chooses the adapter, and can't judge it any more."""
KEPT_EPOCHS = 2
"""Adapters of the ends of epochs that are models beside the final one."""


class Worker:
    """Does jobs until it is told to end.

    Args:
        at_once: jobs, where memory allows.
        grace_s: for trainers to stop at their next step once `ending` is set.
        executor: where trainers run; default: as children.
    """

    def __init__(
        self,
        registry: Registry,
        at_once: int = 1,
        lease_s: float = LEASE_S,
        grace_s: float = inf,
        executor: Executor | None = None,
    ) -> None:
        self.registry, self.at_once, self._grace_s = registry, at_once, grace_s
        self._machine = f"worker-{os.uname().nodename}-"
        self.id = f"{self._machine}{os.getpid()}-{uuid4().hex[:6]}"
        self.jobs = Jobs(registry.database, lease_s)
        self.files = Files(registry.database, registry.home, USES)
        self._executor: Executor = Local() if executor is None else executor
        self.ending = False
        self._attempts: list[Attempt] = []
        self._patience, self._look_again = Patience(), 0.0

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
                    attempt.trainer.kill()  # the next worker goes on from the last checkpoint
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
            attempt.trainer.leave()
            self._attempts.remove(attempt)
        except (AdapterError, ServiceError) as error:  # the database or the store is away
            logger.warning("%s: %s", attempt.job.id, error)
        except Exception:  # one job must not end the others
            logger.exception("%s is given up here", attempt.job.id)
            attempt.trainer.leave()
            self._attempts.remove(attempt)
            with suppress(LeaseLost, AdapterError):
                self.jobs.lose(attempt.job.id, self.id)

    # beginning

    def _begin_next(self) -> None:
        """Begin the first job in line that memory allows."""
        now = time.monotonic()
        if any(now - attempt.renewed > self.jobs.lease_s for attempt in self._attempts):
            return  # the database was away: what is at work here would look as if its worker died
        if now < self._look_again or not self.jobs.waiting():
            return
        bases = {base.name: base for base in self.registry.bases()}
        host, gpu = host_memory(), gpu_memory()
        alone = not self.jobs.at_work(self._machine)
        for waiting in self.jobs.line(LOOKED_AT):
            base, settings = bases.get(waiting.order["base"]), waiting.order["settings"]
            run = self._folder(waiting) / "run"
            # a base that is not there any more is the trainer's to refuse
            need = Need() if base is None else needed(base, settings, run, host, gpu)
            room = self._executor.shares_memory
            lacking = lack(need, self._attempts, host, gpu) if room else None
            if lacking is None or lacking.for_ever:
                if self._take_up(waiting, need, lacking):
                    return
                continue  # another worker's by now
            self._look_again = time.monotonic() + LOOK_AGAIN_S
            self.jobs.tell_waiting(waiting.id, f"Waiting for memory: {lacking.message}")
            if self._patience.keeps_room(waiting.id, alone=alone):
                return

    def _take_up(self, waiting: JobRow, need: Need, lacking: Lack | None) -> bool:
        """Begin a job, or fail it where it never can; whether it was this worker's to take."""
        job = self.jobs.lease(self.id, waiting.id)
        if job is None:
            return False
        self._patience.begun(job.id)
        try:
            if lacking is not None:
                raise _too_large(lacking)
            logger.info("begins %s", job.id)
            self._attempts.append(self._begin(job, need))
        except (AdapterError, ServiceError) as error:
            self._fail(job, error)
        return True

    def _folder(self, job: JobRow) -> Path:
        return self.registry.home.jobs / job.id

    def _begin(self, job: JobRow, need: Need) -> Attempt:
        folder = self._folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"training.keep_epochs": KEPT_EPOCHS, **job.order["settings"]}
        settings |= {
            "name": self._name(job), "project": job.project, "base": job.order["base"],
            "data.train": str(self._fetch(job, job.training_file, folder, "training")),
        }  # fmt: skip
        if job.validation_file is not None:
            place = self._fetch(job, job.validation_file, folder, "validation")
            settings["data.validation"] = str(place)
            if not settings.keys() & _CHOOSING:
                settings["data.test"] = str(place)
        if "parent" in job.order:
            settings["parent"] = job.order["parent"]
        command = [
            sys.executable, "-m", "finetune", "run", job.order["recipe"], "--resume", "--json",
            "--folder", str(folder / "run"), "--home", str(self.registry.home.root),
            *(f"--set={name}={json.dumps(value)}" for name, value in settings.items()),
        ]  # fmt: skip
        trainer = self._executor.start(job.id, command, folder, need)
        return Attempt(job, folder, trainer, need)

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
        code = attempt.trainer.poll()
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
        entries = step_entries(run / "metrics.jsonl")
        fresh = [entry for entry in entries if entry["step"] > attempt.told]
        trained = (run / "adapter").is_dir()
        if not fresh and attempt.running and trained == attempt.trained:
            return
        steps = planned_steps(run)
        events = [Told("running", "The files are valid, training begins")]
        events += [metrics_event(entry, steps) for entry in fresh]
        if trained:
            events.append(Told("trained", "Training is done; the model is evaluated"))
        tokens = sum(entry["tokens"] for entry in entries)
        self.jobs.tell(attempt.job.id, self.id, events, running=True, trained_tokens=tokens)
        attempt.running, attempt.trained = True, trained
        if fresh:
            attempt.told = fresh[-1]["step"]
            attempt.ends = expected_end(entries, steps)

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
            error = told_error(attempt.folder / "printed")
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
        table.write_text(metrics_csv(step_entries(attempt.folder / "run" / "metrics.jsonl")))
        about = About(attempt.job.project, "step_metrics.csv", "fine-tune-results")
        made = self.files.add(table, about)
        mark.write_text(made.id)
        return made.id

    def _fail(self, job: JobRow, error: AdapterError | ServiceError) -> None:
        code = str(getattr(error, "code", "failed"))
        told = {"code": code, "message": error.message, "param": error.param}
        with suppress(LeaseLost):
            self.jobs.end(job.id, self.id, Outcome(FAILED, error=told))


def _too_large(lacking: Lack) -> BadRequest:
    return BadRequest(
        f"the job {lacking.message}: choose a smaller base model, lower training.batch_tokens or "
        "training.max_length, or let a larger machine work",
        param="model", code="not_enough_memory",
    )  # fmt: skip


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
    parser.add_argument(
        "--executor", choices=("local", "ray-jobs"), default="local",
        help="where trainers run: as children of the worker, or as jobs of a Ray cluster",
    )  # fmt: skip
    parser.add_argument(
        "--ray-address", default=os.environ.get("RAY_API_SERVER_ADDRESS"),
        help="ray-jobs: dashboard of the cluster's head, such as http://HOST:8265; default: "
        "RAY_API_SERVER_ADDRESS",
    )  # fmt: skip
    parser.add_argument("--ray-cpus", type=int, default=1, help="ray-jobs: cores of a trainer")
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
    if options.executor == "ray-jobs" and not options.ray_address:
        parser.error("--executor ray-jobs needs --ray-address")
    try:
        ray = options.executor == "ray-jobs"
        executor = RayJobs(options.ray_address, options.ray_cpus) if ray else Local()
        worker = Worker(
            Registry.open(options.home), max(1, options.jobs), max(1.0, options.lease_s),
            max(0.0, options.grace_s), executor,
        )  # fmt: skip
    except AdapterError as error:
        print(error, file=sys.stderr)
        return 2

    def end(_number: int, _frame: FrameType | None) -> None:
        worker.ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
