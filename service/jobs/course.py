"""A job on its way: what its trainer writes is told, what its caller wants is passed on, and what
came of it is told in the end."""

import logging
from math import inf

from service.jobs.attempt import Attempt, metrics_event, planned_steps, told_error
from service.jobs.executors import STOPPED
from service.jobs.leased import LeasedJobs, LeaseLost
from service.jobs.leases import Leases
from service.jobs.setbacks import Setbacks
from service.jobs.states import CANCEL, FAILED, PAUSE, Outcome, Told
from service.jobs.success import Success

logger = logging.getLogger("modiste.worker")

TOLD_AT_ONCE = 500
"""Steps in one transaction."""
PASSING = ("store_failed", "run_busy")
"""Errors of the trainer that say nothing of its job."""
TOO_LONG = "too long"
"""Why a trainer is stopped whose job has had its hours."""
TO_STOP_S = 300.0
"""For its next step, before it is killed."""


class Course:
    """Follows the jobs of one worker.

    Attributes:
        most_s: how long a job may be at work.
    """

    def __init__(
        self, jobs: LeasedJobs, worker: str, leases: Leases, setbacks: Setbacks, success: Success
    ) -> None:
        self.most_s = inf
        self._jobs, self._worker = jobs, worker
        self._leases, self._setbacks, self._success = leases, setbacks, success

    def poll(self, attempt: Attempt) -> bool:
        """Tell what is new; whether the job is done with here."""
        code = attempt.trainer.poll()
        attempt.hours.note(now=code is not None)
        self._tell(attempt)
        if code is not None:
            self._end(attempt, code)
            return True
        lease = self._leases.of(attempt.job.id)
        if lease is not None and lease.wanted is not None:
            attempt.stop(lease.wanted)
        elif (over_s := attempt.hours.spent_s - self.most_s) > 0:
            attempt.stop(TOO_LONG)
            if over_s > TO_STOP_S:
                attempt.trainer.kill()
        return False

    def _tell(self, attempt: Attempt) -> None:
        """Tell of the steps since the last time, and of what else happened."""
        run = attempt.folder / "run"
        if not (run / "preflight.json").is_file():
            return
        attempt.read_steps()
        trained = (run / "adapter").is_dir()
        if not attempt.untold and attempt.running and trained == attempt.trained:
            return
        steps = planned_steps(run)
        lease = self._leases.of(attempt.job.id)
        if lease is not None:
            lease.ends = attempt.steps.expected_end(steps)
        events = [Told("running", "The files are valid, training begins")]
        while True:
            chunk = attempt.untold[:TOLD_AT_ONCE]
            events += [metrics_event(entry, steps) for entry in chunk]
            last = len(chunk) == len(attempt.untold)
            if trained and last:
                events.append(Told("trained", "Training is done; the model is evaluated"))
            self._jobs.tell(
                attempt.job.id,
                self._worker,
                events,
                running=True,
                trained_tokens=attempt.steps.tokens,
            )
            attempt.was_told(len(chunk))
            if last:
                break
            events = []
        attempt.running, attempt.trained = True, trained

    def _end(self, attempt: Attempt, code: int) -> None:
        job = attempt.job
        lease = self._leases.of(job.id)
        if lease is not None and lease.gone:  # the trainer was ended for it
            raise LeaseLost(job.id)
        wanted = self._jobs.renew(job.id, self._worker)
        stopped = code == STOPPED or (attempt.stopping is not None and code < 0)
        if wanted != CANCEL and code != 0 and attempt.stopping == TOO_LONG:
            self._jobs.end(job.id, self._worker, Outcome(FAILED, error=self._too_long()))
        elif wanted == CANCEL or (code != 0 and (stopped or wanted == PAUSE)):
            self._jobs.give_back(job.id, self._worker)
        elif code == 0:
            self._success.tell(attempt)
        elif code < 0:
            self._jobs.lose(job.id, self._worker)
        else:
            error = told_error(attempt.folder / "printed")
            if error["code"] in PASSING:
                self._jobs.give_back(job.id, self._worker, f"Waiting: {error['message']}")
                self._setbacks.pause(job.id)
            else:
                self._jobs.end(job.id, self._worker, Outcome(FAILED, error=error))
        logger.info("%s ended with %s", job.id, code)

    def _too_long(self) -> dict[str, str | None]:
        return {
            "code": "job_too_long", "param": None,
            "message": f"the job was at work for {self.most_s / 3600:g} hours, the most that the "
            "operator allows: ask for fewer epochs or less data, or for a higher max_job_hours",
        }  # fmt: skip
