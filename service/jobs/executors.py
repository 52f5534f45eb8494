"""Where the trainer of a job runs: as a child of the worker, or as a job of a Ray cluster.

With Ray Jobs (https://docs.ray.io/en/latest/cluster/running-applications/job-submission) the
cluster places the trainer, by cores, GPU and memory. Its machines need modiste, and the home
folder at the same path. A worker that dies leaves the trainer running, and the next one takes it
up where it is.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from adapters.errors import InvalidInput
from service.children import NICENESS, die_with_parent
from service.jobs.room import Need

STOPPED = 130
"""The trainer's exit code when it was asked to stop."""
_STOP_WAIT_S = 600
"""For a trainer on Ray to come to the end of its step; Ray would give it three seconds."""


class Trainer(Protocol):
    """A trainer at work."""

    @property
    def pid(self) -> int:
        """On this machine; -1: it is elsewhere."""

    def poll(self) -> int | None:
        """Its exit code; below 0 a signal's; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end at its next step."""

    def kill(self) -> None: ...
    def leave(self) -> None:
        """Another worker has the job."""


class Executor(Protocol):
    """Starts trainers."""

    shares_memory: bool
    """Whether they take this machine's memory, which the worker then keeps."""

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:
        """Start one that prints into `folder/printed` and tells its log in `folder/log`."""


class Local:
    """Children of the worker, which die with it."""

    shares_memory = True

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:  # noqa: ARG002
        with (folder / "printed").open("wb") as out, (folder / "log").open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                # one whose worker was killed would hold the run against the next worker
                start_new_session=True, preexec_fn=_die,  # noqa: PLW1509 - no threads
            )  # fmt: skip
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICENESS)
        return LocalTrainer(child)


class LocalTrainer:
    """A trainer that is this process's child."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        return self._child.poll()

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            self._child.terminate()

    def kill(self) -> None:
        self._child.kill()

    def leave(self) -> None:
        """It would hold the run against the other worker's trainer."""
        self._child.kill()
        self._child.wait()


def _die() -> None:
    die_with_parent(signal.SIGKILL)


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
        except (ConnectionError, RuntimeError) as error:
            raise InvalidInput(
                f"no Ray cluster answers at {address}: {str(error).splitlines()[0][:200]}",
                hint="give the dashboard of its head, such as http://HOST:8265",
                param="ray_address",
            ) from error
        self._cpus = cpus

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:
        """Submit a trainer, or take up the one that a dead worker left running."""
        for known in self._client.list_jobs():
            if (known.submission_id or "").startswith(f"{job}-") and not known.status.is_terminal():
                return RayTrainer(self._client, known.submission_id)
        printed, log = (shlex.quote(str(folder / name)) for name in ("printed", "log"))
        variables = {name: os.environ[name] for name in os.environ if name.startswith("MODISTE_")}
        id_ = self._client.submit_job(
            entrypoint=f"exec {shlex.join(command)} </dev/null >{printed} 2>>{log}",
            submission_id=f"{job}-{uuid4().hex[:8]}",
            runtime_env={
                "env_vars": {**variables, "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
            },
            entrypoint_num_cpus=self._cpus, entrypoint_memory=need.host or None,
            entrypoint_num_gpus=1 if need.gpu else None,
        )  # fmt: skip
        return RayTrainer(self._client, id_)


class RayTrainer:
    """A trainer on a Ray cluster."""

    pid = -1

    def __init__(self, client: Any, id_: str) -> None:
        self._client, self._id = client, id_
        self._killed = False

    def poll(self) -> int | None:
        """Its exit code; None while it runs, waits, or the cluster can't be asked."""
        try:
            info = self._client.get_job_info(self._id)
        except (ConnectionError, TimeoutError):
            return None
        except RuntimeError as error:  # the cluster was started anew and knows nothing of it
            return -signal.SIGKILL if "404" in str(error) else None
        if not info.status.is_terminal():
            return None
        if info.status == "SUCCEEDED":
            return 0
        if self._killed or info.status == "STOPPED":
            return STOPPED
        code = info.driver_exit_code
        return -signal.SIGKILL if code is None or code < 0 or code > 128 else int(code)

    def terminate(self) -> None:
        """Ray sends SIGTERM, and in the end SIGKILL."""
        with suppress(ConnectionError, TimeoutError, RuntimeError):
            self._client.stop_job(self._id)

    def kill(self) -> None:
        self._killed = True
        self.terminate()

    def leave(self) -> None:
        """The other worker has taken it up."""
