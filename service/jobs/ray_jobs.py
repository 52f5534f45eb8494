"""Trainers as jobs of a Ray cluster.

With Ray Jobs (https://docs.ray.io/en/latest/cluster/running-applications/job-submission) the
cluster places the trainer, by cores, GPU and memory. Its machines need modiste, and the home
folder at the same path. A worker that dies leaves the trainer running, and the next one takes it
up where it is.

What Ray's client raises where the cluster can't be asked is of many kinds: those of `requests`, of
a token that is not taken, of an answer that can't be read. An answer that is an error is a
RuntimeError with its status.
"""

import logging
import os
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from adapters.audit import current_actor, environment_of
from adapters.errors import InvalidInput
from service.errors import NotReady
from service.jobs.executors import STOPPED, Trainer, working_folder
from service.jobs.folders import Statuses
from service.jobs.room import Need
from service.jobs.states import ENDED, PAUSED

logger = logging.getLogger("modiste.worker")
Answer = TypeVar("Answer")

_STOP_WAIT_S = 600
"""For a trainer to come to the end of its step; Ray would give it three seconds."""
_OURS = re.compile(r"(ftjob-\w+)-[0-9a-f]{8}")
"""Ids of our submissions: the job's, and a part that differs each time."""


class RayJobs:
    """Jobs of a Ray cluster.

    Args:
        address: of the head's dashboard, `http://HOST:8265`.
        cpus: cores that a trainer reserves.

    Raises:
        InvalidInput: Ray is not installed, or no cluster answers.
    """

    shares_memory = False

    def __init__(self, address: str, cpus: int = 1) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise InvalidInput(
                f"Ray is not installed here: {error}", hint="pip install 'modiste[ray-jobs]'"
            ) from error
        try:
            self._client: Any = JobSubmissionClient(address)
        except Exception as error:
            raise InvalidInput(
                f"no Ray cluster answers at {address}: {str(error).splitlines()[0][:200]}",
                hint="give the dashboard of its head, such as http://HOST:8265",
                param="ray_address",
            ) from error
        self._cpus = cpus

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:
        """Submit a trainer, or take up the one that a dead worker left running."""
        secrets = folder / "environment"
        for id_ in self._running():
            if _job_of(id_) == job:
                return RayTrainer(self._client, id_, secrets)
        _write_environment(secrets)
        printed, log, there, place = (
            shlex.quote(str(path))
            for path in (folder / "printed", folder / "log", secrets, working_folder(folder))
        )
        id_ = _asked(
            lambda: self._client.submit_job(
                entrypoint=f"cd {place} && set -a && . {there} && set +a && "
                f"exec {shlex.join(command)} </dev/null >{printed} 2>>{log}",
                submission_id=f"{job}-{uuid4().hex[:8]}",
                # shown by the dashboard, so nothing else
                runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}},
                entrypoint_num_cpus=self._cpus, entrypoint_memory=need.host or None,
                entrypoint_num_gpus=1 if need.gpu else None,
            )
        )  # fmt: skip
        return RayTrainer(self._client, id_, secrets)

    def stop_orphans(self, statuses: Statuses) -> None:
        """Stop trainers of jobs that have ended or rest; those of other databases are not ours."""
        running = {id_: job for id_ in self._running() if (job := _job_of(id_)) is not None}
        known = statuses(list(running.values())) if running else {}
        for id_, job in running.items():
            if known.get(job) in (*ENDED, PAUSED):
                logger.info("stops %s, whose job is %s", id_, known[job])
                _asked(lambda id_=id_: self._client.stop_job(id_))  # type: ignore[misc]

    def _running(self) -> list[str]:
        """Submissions that have not ended."""
        listed = _asked(self._client.list_jobs)
        return [
            one.submission_id for one in listed
            if one.submission_id is not None and not one.status.is_terminal()
        ]  # fmt: skip


class RayTrainer:
    """A trainer on a Ray cluster.

    Args:
        secrets: the file of its environment, which goes when it has ended.
    """

    pid = -1

    def __init__(self, client: Any, id_: str, secrets: Path) -> None:
        self._client, self._id, self._secrets = client, id_, secrets
        self._killed = self._to_stop = False

    def poll(self) -> int | None:
        """Its exit code; None while it runs, waits, or the cluster can't be asked."""
        if self._to_stop:
            self.terminate()
        code = self._code()
        if code is not None:
            self._secrets.unlink(missing_ok=True)
        return code

    def terminate(self) -> None:
        """Ray sends SIGTERM, and in the end SIGKILL; where it can't be asked, it is again."""
        self._to_stop = False
        try:
            self._client.stop_job(self._id)
        except Exception as error:  # noqa: BLE001 - told; it is asked again
            self._to_stop = True
            logger.warning("%s was not stopped yet: %s", self._id, error)

    def kill(self) -> None:
        self._killed = True
        self.terminate()

    def leave(self) -> None:
        """The other worker has taken it up."""

    def _code(self) -> int | None:
        try:
            info = self._client.get_job_info(self._id)
        except Exception as error:  # noqa: BLE001 - it is asked again
            # 404: the cluster was started anew and knows nothing of it
            return -signal.SIGKILL if "status code 404" in str(error) else None
        if not info.status.is_terminal():
            return None
        if info.status == "SUCCEEDED":
            return 0
        if self._killed or info.status == "STOPPED":
            return STOPPED
        code = info.driver_exit_code
        return -signal.SIGKILL if code is None or code < 0 or code > 128 else int(code)


def _job_of(submission: str) -> str | None:
    found = _OURS.fullmatch(submission)
    return None if found is None else found[1]


def _asked(ask: Callable[[], Answer]) -> Answer:
    """What a cluster answers.

    Raises:
        NotReady: it can't be asked now.
        RuntimeError: it refuses what was asked.
    """
    try:
        return ask()
    except Exception as error:
        if isinstance(error, RuntimeError) and "status code 4" in str(error):
            raise
        raise NotReady(f"the Ray cluster can't be asked: {str(error)[:200]}") from error


def _write_environment(place: Path) -> None:
    """Our own variables, some of which are secret, as a shell reads them."""
    place.unlink(missing_ok=True)
    ours = {name: os.environ[name] for name in os.environ if name.startswith("MODISTE_")}
    ours |= environment_of(current_actor())
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in ours.items()]
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(lines)
