"""The server's own worker: `python -m service.jobs.worker` as its child, at low priority.

It is started once the server is ready, started again when it dies, and told to end with the
server. One whose server is killed ends by itself.
"""

import asyncio
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self

from service.children import NICENESS
from service.settings import Settings

logger = logging.getLogger("modiste.worker")

STDERR = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Before a worker that died is started again; doubled from one death to the next."""
SOUND_S = 300.0
"""A worker that lived so long begins with the first pause again."""
LEAST_GRACE_S = 3.0
"""What a worker without jobs needs to end, and some more."""
GIVE_BACK_S = 2.0
"""Of the grace, to give back the jobs whose trainers didn't stop."""
FIRST_TO_DIE = 500
"""Where memory runs out, for the kernel: a job is taken up again, a request is lost."""


class EmbeddedWorker:
    """Keeps one worker process running.

    Its methods are for the event loop of the main thread: the kernel tells the child of the end
    of the thread that started it.

    Args:
        grace_s: how long it may take to end.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], grace_s: float
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._grace_s = grace_s
        self._ending = asyncio.Event()
        self._child: Process | None = None

    @classmethod
    def of(cls, settings: Settings, home: Path, environment: Mapping[str, str]) -> Self:
        """The worker of a server.

        Args:
            environment: as the operator gave it: the server's own has what is meant for vLLM.
        """
        grace_s = max(float(settings.shutdown_grace_s), LEAST_GRACE_S)
        command = [
            sys.executable, "-m", "service.jobs.worker", "--home", str(home),
            "--jobs", str(settings.worker_jobs), "--log-level", settings.log_level,
            "--log-format", settings.log_format,
            "--grace-s", str(grace_s - GIVE_BACK_S), "--parent", str(os.getpid()),
        ]  # fmt: skip
        if settings.max_job_hours is not None:
            command += ["--job-hours", str(settings.max_job_hours)]
        return cls(command, {**environment, **_places(settings)}, grace_s)

    async def run(self, ready: asyncio.Event) -> None:
        """From when the server is ready until it ends; then until the child has ended too."""
        try:
            await ready.wait()
            await self._keep()
        finally:
            self.end()
            if self._child is not None:
                await self._child.wait()

    def end(self) -> None:
        """Tell the worker to give its jobs back; a second time changes nothing."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._terminate()
        asyncio.get_running_loop().call_later(self._grace_s, self._kill)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._ending.is_set():
            began = monotonic()
            ended = await self._once()
            if self._ending.is_set():
                return
            if monotonic() - began > SOUND_S:
                pause = FIRST_PAUSE_S
            logger.error("the worker %s; it is started again in %g s", ended, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _once(self) -> str:
        """Run the worker until it ends; how it did."""
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdin=DEVNULL, stdout=STDERR, stderr=STDERR,
                start_new_session=True,  # Ctrl-C is for the server, which then tells it to end
            )  # fmt: skip
        except OSError as error:
            return f"could not be started: {error.strerror}"
        _stand_back(self._child.pid)
        if self._ending.is_set():  # while it was started
            self._terminate()
        return f"ended with {await self._child.wait()}"

    def _terminate(self) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.terminate()

    def _kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            logger.warning("the worker did not end within %g s and is killed", self._grace_s)
            with suppress(ProcessLookupError):
                self._child.kill()


def _places(settings: Settings) -> dict[str, str]:
    """Where the server found database and stores, for the worker to find them there too."""
    url = settings.database_url
    places = {
        "DATABASE_URL": None if url is None else url.get_secret_value(),
        "STORE_URL": settings.store_url, "FILES_URL": settings.files_url,
        "STORE_CACHE_GIB": str(settings.store_cache_gib),
    }  # fmt: skip
    return {f"MODISTE_{name}": value for name, value in places.items() if value is not None}


def _stand_back(pid: int) -> None:
    """Requests come first, for the cores and for memory; what it starts inherits both."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(FIRST_TO_DIE))
