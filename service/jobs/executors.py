"""Where the trainer of a job runs: as a child of the worker, or as a job of a Ray cluster.

The trainer works in an empty folder: the name of a recipe may be that of a file where it works, and
the job's own folder has what callers sent.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from adapters.audit import current_actor, environment_of
from adapters.processes import bound
from service.children import NICENESS
from service.jobs.folders import Statuses
from service.jobs.room import Need

STOPPED = 130
"""The trainer's exit code when it was asked to stop."""


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

    def stop_orphans(self, statuses: Statuses) -> None:
        """Stop trainers that a worker left running and whose job needs none any more.

        Args:
            statuses: of the jobs that there are.
        """

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:
        """Start one that prints into `folder/printed` and tells its log in `folder/log`.

        Raises:
            OSError, NotReady: it could not be started now.
        """


class Local:
    """Children of the worker, which die with it."""

    shares_memory = True

    def stop_orphans(self, statuses: Statuses) -> None:
        """There are none."""

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:  # noqa: ARG002
        with (folder / "printed").open("wb") as out, (folder / "log").open("ab") as log:
            child = subprocess.Popen(
                # one whose worker was killed would hold the run against the next worker
                bound(command), stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                cwd=working_folder(folder), start_new_session=True,
                env=os.environ | environment_of(current_actor()),
            )  # fmt: skip
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICENESS)
        return LocalTrainer(child)


def working_folder(folder: Path) -> Path:
    """An empty folder within a job's."""
    place = folder / "empty"
    place.mkdir(exist_ok=True)
    return place


class LocalTrainer:
    """A trainer that is this process's child."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child, self._ended = child, False

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        code = self._child.poll()
        if code is not None and not self._ended:
            self._ended = True
            self._kill_group()
        return code

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            self._child.terminate()

    def kill(self) -> None:
        """With all that it started, such as an engine, which has a session of its own."""
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            if self._child.poll() is None:
                family = psutil.Process(self.pid).children(recursive=True)
        self._child.kill()
        self._kill_group()
        for member in family:
            with suppress(psutil.Error):
                member.kill()

    def leave(self) -> None:
        """It would hold the run against the other worker's trainer."""
        self.kill()
        self._child.wait()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
