"""`modiste worker`: takes fine-tuning jobs from the queue and lets the trainer do them.

It begins the next job that memory allows (`room.py`). Each has a folder of its own, HOME/jobs/ID,
in which `finetune run --resume` works as a child process. What it writes there is told as events;
what the caller wants, and a sign of life, go by the lease (`leases.py`). A worker that is told to
end stops its children at their next step and gives the jobs back; one that is killed loses its
leases, and another goes on from the last checkpoint.

What will pass, such as a database or a store that is away, is no failure of a job: it is given back
and begun again after a pause.
"""

import argparse
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from math import inf
from pathlib import Path
from types import FrameType
from uuid import uuid4

from adapters.audit import CALLER, Actor, acting
from adapters.bases import Base
from adapters.errors import AdapterError
from adapters.registry import Registry
from service.children import die_with_parent
from service.database import JobRow
from service.errors import BadRequest, ServiceError
from service.files import Files
from service.jobs.attempt import Attempt
from service.jobs.course import Course
from service.jobs.executors import Executor, Local
from service.jobs.folders import clear, sweep
from service.jobs.leases import Leases
from service.jobs.preparation import Preparation
from service.jobs.queue import LEASE_S, Jobs, LeaseLost
from service.jobs.ray_jobs import RayJobs
from service.jobs.room import Lack, Memory, Need, Patience, gpu_memory, host_memory, lack, needed
from service.jobs.setbacks import Setbacks, in_words, passes, tell_of
from service.jobs.states import ENDED, FAILED, Outcome
from service.jobs.success import Success
from service.logs import begin_worker
from service.uses import USES

logger = logging.getLogger("modiste.worker")

POLL_S = 0.5
LOOK_AGAIN_S = 5.0
"""After a look at jobs none of which had room, or that failed."""
AGAIN_S = 2.0
"""After a look at a job at work that failed."""
LOOKED_AT = 50
"""Jobs in line that are looked at for one that has room."""
ORPHANS_EVERY_S, SWEEP_EVERY_S = 60.0, 3600.0


class Worker:
    """Does jobs until it is told to end.

    Args:
        at_once: jobs, where memory allows.
        grace_s: for trainers to stop at their next step once `ending` is set.
        executor: where trainers run; default: as children.
        job_hours: how long a job may be at work, in all of its attempts.

    Attributes:
        alive: a file that is touched on every round, for whoever looks whether the worker is stuck.
    """

    alive: Path | None = None

    def __init__(
        self,
        registry: Registry,
        at_once: int = 1,
        lease_s: float = LEASE_S,
        grace_s: float = inf,
        executor: Executor | None = None,
        job_hours: float = inf,
    ) -> None:
        self.registry, self.at_once, self._grace_s = registry, at_once, grace_s
        self._machine = f"worker-{os.uname().nodename}-"
        self.id = f"{self._machine}{os.getpid()}-{uuid4().hex[:6]}"
        self.jobs = Jobs(registry.database, lease_s)
        self.files = Files(registry.database, registry.home, USES)
        self._executor: Executor = Local() if executor is None else executor
        self._preparation = Preparation(registry, self.files)
        self.ending = False
        self._attempts: list[Attempt] = []
        self._leases, self._setbacks = Leases(self.jobs, self.id), Setbacks()
        success = Success(registry, self.files, self.jobs, self.id)
        self._course = Course(self.jobs, self.id, self._leases, self._setbacks, success)
        self._course.most_s = 3600 * job_hours
        self._patience, self._look_again, self._reach_again = Patience(), 0.0, 0.0
        self._orphans_due = self._sweep_due = 0.0

    def run(self) -> None:
        """Work until `ending` is set, then give back what is not done."""
        logger.info("%s waits for jobs", self.id)
        self._leases.start()
        until = inf
        while not (self.ending and not self._attempts):
            if self.alive is not None:
                self.alive.touch()
            if self.ending and until == inf:
                until = time.monotonic() + self._grace_s
            for attempt in list(self._attempts):
                if self.ending:
                    attempt.stop("ending")
                if time.monotonic() > until:
                    attempt.trainer.kill()  # the next worker goes on from the last checkpoint
                self._look_after(attempt)
            self._give_back_owed()
            if not self.ending:
                self._clean()
                if len(self._attempts) < self.at_once:
                    self._begin_next()
            time.sleep(POLL_S)
        self._leases.close()
        self._reach_again = 0.0
        self._give_back_owed()

    # beginning

    def _begin_next(self) -> None:
        """Begin the first job in line that memory allows."""
        now = time.monotonic()
        if now < self._reach_again:
            return
        try:
            if self._leases.steady:
                self.jobs.put_back_late([*self._leases.held(), *self._setbacks.owed])
            line = self.jobs.line(LOOKED_AT, self._setbacks.paused())
            self._leases.reached()
            if line and now >= self._look_again:
                self._look_at(line)
        except Exception as error:  # noqa: BLE001 - told; it is tried again
            self._leases.failed()
            self._reach_again = time.monotonic() + LOOK_AGAIN_S
            tell_of(error, "no job was begun")

    def _look_at(self, line: list[JobRow]) -> None:
        bases = {base.name: base for base in self.registry.bases()}
        host, gpu = host_memory(), gpu_memory()
        alone = not self.jobs.at_work(self._machine)
        for waiting in line:
            try:
                need, lacking = self._room(waiting, bases.get(waiting.order["base"]), host, gpu)
            except Exception as error:  # noqa: BLE001 - of this job: the others are begun
                self._take_up(waiting, error)
                continue
            if lacking is None or lacking.for_ever:
                if self._take_up(waiting, need if lacking is None else _too_large(lacking)):
                    return
                continue  # another worker's by now
            self._look_again = time.monotonic() + LOOK_AGAIN_S
            self.jobs.tell_waiting(waiting.id, f"Waiting for memory: {lacking.message}")
            if self._patience.keeps_room(waiting.id, alone=alone):
                return

    def _room(
        self, waiting: JobRow, base: Base | None, host: Memory, gpu: Memory | None
    ) -> tuple[Need, Lack | None]:
        """What a job needs, and what of it is not there."""
        settings, run = waiting.order["settings"], self._folder(waiting) / "run"
        # a base that is not there any more is the trainer's to refuse
        need = Need() if base is None else needed(base, settings, run, host, gpu)
        room = self._executor.shares_memory
        return need, lack(need, self._attempts, host, gpu) if room else None

    def _take_up(self, waiting: JobRow, how: Need | Exception) -> bool:
        """Begin a job, or say why it can't be; whether it was this worker's to take."""
        began = time.monotonic()
        self._setbacks.owe(waiting.id)  # where the answer is lost, nobody else would know
        job = self.jobs.lease(self.id, waiting.id)
        self._setbacks.settle(waiting.id)
        if job is None:
            return False
        lease = self._leases.hold(job.id, began)
        self._patience.begun(job.id)
        try:
            if isinstance(how, Exception):
                raise how
            logger.info("begins %s", job.id)
            attempt = self._begin(job, how)
        except LeaseLost:
            self._leases.let_go(job.id)
            self._setbacks.owe(job.id)
        except Exception as error:  # noqa: BLE001 - of this job alone
            self._stumble(job, error)
        else:
            lease.stop = attempt.trainer.leave
            self._attempts.append(attempt)
        return True

    def _folder(self, job: JobRow) -> Path:
        return self.registry.home.jobs / job.id

    def _begin(self, job: JobRow, need: Need) -> Attempt:
        folder = self._folder(job)
        command = self._preparation.command(job, folder)
        told = self.jobs.last_step(job.id)
        lease = self._leases.of(job.id)
        if lease is None or lease.gone:  # while its files were fetched
            raise LeaseLost(job.id)
        with acting(Actor(CALLER, job.caller, job.project)):  # what it publishes is the caller's
            trainer = self._executor.start(job.id, command, folder, need)
        return Attempt(job, folder, trainer, need, told=told)

    # on the way

    def _look_after(self, attempt: Attempt) -> None:
        job = attempt.job
        lease = self._leases.of(job.id)
        if lease is not None and lease.gone:
            self._leave(attempt)
        elif time.monotonic() >= attempt.again:
            try:
                done = self._course.poll(attempt)
            except LeaseLost:
                self._leave(attempt)
            except Exception as error:  # noqa: BLE001 - one job must not end the others
                if passes(error):
                    attempt.again = time.monotonic() + AGAIN_S
                    logger.warning("%s: %s", job.id, error)
                else:
                    attempt.trainer.leave()
                    self._attempts.remove(attempt)
                    self._stumble(job, error)
            else:
                if done:
                    self._let_go(attempt)

    def _let_go(self, attempt: Attempt) -> None:
        """The job is done with here: ended, or in the queue again."""
        self._attempts.remove(attempt)
        self._leases.let_go(attempt.job.id)
        self._clear(attempt.job)

    def _leave(self, attempt: Attempt) -> None:
        """The job may be another worker's by now: nothing here may go on with it."""
        logger.warning("the lease of %s is lost", attempt.job.id)
        attempt.trainer.leave()
        self._attempts.remove(attempt)
        self._leases.let_go(attempt.job.id)
        self._setbacks.owe(attempt.job.id)  # where it is nobody else's, it was not lost

    def _stumble(self, job: JobRow, error: Exception) -> None:
        """A job could not be begun, or gone on with: give it back where that passes, or fail it."""
        self._leases.let_go(job.id)
        self._setbacks.owe(job.id, f"Waiting: {in_words(error)}")
        if passes(error):
            logger.warning("%s waits: %s", job.id, error)
            self._setbacks.pause(job.id)
            self._look_again = time.monotonic() + LOOK_AGAIN_S
            self._give_back_owed()
            return
        if isinstance(error, AdapterError | ServiceError):
            told = {"code": str(error.code), "message": error.message, "param": error.param}
        else:
            logger.error("%s is given up", job.id, exc_info=error)
            message = "the worker failed at this job; its log has the reason"
            told = {"code": "worker_failed", "message": message, "param": None}
        with suppress(LeaseLost, AdapterError):  # where the database is away it comes again
            self.jobs.end(job.id, self.id, Outcome(FAILED, error=told))
            self._setbacks.settle(job.id)
            self._clear(job)

    def _give_back_owed(self) -> None:
        """Give back jobs that are in no hands here, as soon as the database can be reached."""
        if time.monotonic() < self._reach_again:
            return
        for id_, why in list(self._setbacks.owed.items()):
            try:
                self.jobs.give_back(id_, self.id, why)
            except LeaseLost:
                pass
            except Exception as error:  # noqa: BLE001 - told; it is tried again
                self._leases.failed()
                self._reach_again = time.monotonic() + LOOK_AGAIN_S
                tell_of(error, f"{id_} was not given back")
                return
            self._setbacks.settle(id_)

    # folders and trainers that are left

    def _clear(self, job: JobRow) -> None:
        try:
            if self.jobs.statuses([job.id]).get(job.id) in ENDED:
                clear(self._folder(job))
        except Exception as error:  # noqa: BLE001 - told; it is done when all are looked at
            tell_of(error, f"the folder of {job.id} was not cleared")

    def _clean(self) -> None:
        """What is left of jobs that ended elsewhere, or while no worker was there."""
        now = time.monotonic()
        try:
            if now >= self._orphans_due:
                self._orphans_due = now + ORPHANS_EVERY_S
                self._executor.stop_orphans(self.jobs.statuses)
            if now >= self._sweep_due:
                self._sweep_due = now + ORPHANS_EVERY_S
                sweep(self.registry.home.jobs, self.jobs.statuses)
                self._sweep_due = now + SWEEP_EVERY_S
        except Exception as error:  # noqa: BLE001 - told; it is tried again
            tell_of(error, "what jobs left was not cleaned up")


def _too_large(lacking: Lack) -> BadRequest:
    return BadRequest(
        f"the job {lacking.message}: choose a smaller base model, lower training.batch_tokens or "
        "training.max_length, or let a larger machine work",
        param="model", code="not_enough_memory",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument(
        "--job-hours", type=float, default=inf,
        help="longest time at work of a job, all attempts together, hours; default: any",
    )  # fmt: skip
    parser.add_argument("--ray-cpus", type=int, default=1, help="ray-jobs: cores of a trainer")
    parser.add_argument(
        "--alive", type=Path, help="a file to touch on every round; its age tells a stuck worker"
    )
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="info", choices=levels)
    parser.add_argument("--log-format", default="text", choices=("text", "json"))
    # the server's own worker ends with it, however that ends
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it gets SIGTERM or Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != options.parent:  # it was gone by then
            return 0
    begin_worker(options.log_format, options.log_level)
    if options.executor == "ray-jobs" and not options.ray_address:
        parser.error("--executor ray-jobs needs --ray-address")
    try:
        ray = options.executor == "ray-jobs"
        executor: Executor = RayJobs(options.ray_address, options.ray_cpus) if ray else Local()
        worker = Worker(
            Registry.open(options.home), max(1, options.jobs), max(1.0, options.lease_s),
            max(0.0, options.grace_s), executor, options.job_hours,
        )  # fmt: skip
        worker.alive = options.alive
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
