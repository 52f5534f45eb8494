"""Servers under measurement: started, awaited, measured from outside, and ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MODISTE = str(Path(sys.executable).with_name("modiste"))
START_LIMIT_S = 300.0
STOP_LIMIT_S = 30.0
LISTENING = "0A"  # the state in /proc/net/tcp


class ServerError(Exception):
    """A server that didn't start; the message ends with its log's last lines."""


@dataclass(frozen=True)
class Launch:
    """How to start one server. It leads a session of its own, by which its children are found."""

    label: str
    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    ready_path: str = "/health"


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    label: str
    port: int
    session: int
    """The first process; all of the server's processes share its session."""
    api_process: int
    """The process that accepts connections: vLLM's engine runs in a child of it."""
    model: str

    def api_cpu_s(self) -> float:
        """CPU time of the API process so far, all threads, in seconds."""
        return process_cpu_s(self.api_process)

    def all_cpu_s(self) -> float:
        """CPU time of all its processes so far, in seconds."""
        return sum(process_cpu_s(process) for process in session_processes(self.session))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(launches: Sequence[Launch], log_folder: Path) -> Iterator[list[Server]]:
    """Start all, wait until all answer, end all: on SIGTERM too. Raises ServerError."""
    log_folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # By default the signal ends Python at once, and the servers would stay.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGTERM, before)
        started = [
            (launch, stack.enter_context(_process(launch, _log(log_folder, launch))))
            for launch in launches
        ]
        yield [
            _await_ready(launch, process, _log(log_folder, launch)) for launch, process in started
        ]


def _log(folder: Path, launch: Launch) -> Path:
    return folder / f"{launch.label}.log"


@contextmanager
def _process(launch: Launch, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            launch.command,
            env=launch.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    children = session_processes(process.pid)
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child in session_processes(process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _await_ready(launch: Launch, process: subprocess.Popen[bytes], log_path: Path) -> Server:
    deadline = time.monotonic() + START_LIMIT_S
    address = f"http://127.0.0.1:{launch.port}"
    while not _answers(address + launch.ready_path):
        code = process.poll()
        if code is not None:
            raise ServerError(_failure(launch, f"ended with {code}", log_path))
        if time.monotonic() > deadline:
            raise ServerError(_failure(launch, f"not ready after {START_LIMIT_S:g} s", log_path))
        time.sleep(0.5)
    with urllib.request.urlopen(f"{address}/v1/models") as response:  # noqa: S310  # our own
        model = json.load(response)["data"][0]["id"]
    api_process = listening_process(launch.port, session_processes(process.pid))
    return Server(launch.label, launch.port, process.pid, api_process, model)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # our own server
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _failure(launch: Launch, what: str, log_path: Path) -> str:
    tail = log_path.read_text(errors="replace").splitlines()[-25:]
    return "\n".join([f"{launch.label}: {what}; its log {log_path} ends so:", *tail])


def process_cpu_s(process: int) -> float:
    """A process's CPU time, all its threads, ended ones too, in seconds; 0 when it is gone.

    The kernel's clock of the process: /proc/PID/stat counts the same in steps of 10 ms.
    """
    try:
        return time.clock_gettime(
            (~process << 3) | 2
        )  # Linux: MAKE_PROCESS_CPUCLOCK, CPUCLOCK_SCHED
    except OSError:
        return 0.0


def session_processes(session: int) -> list[int]:
    """The processes of a session that are alive, oldest first."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # After the name, which may hold anything: state, parent, group, session.
            state, _, _, of_session = (
                (folder / "stat").read_text().rpartition(")")[2].split(maxsplit=4)[:4]
            )
        except OSError:
            continue  # it ended meanwhile
        if int(of_session) == session and state != "Z":
            found.append(int(folder.name))
    return sorted(found)


def listening_process(port: int, candidates: Sequence[int]) -> int:
    """The oldest of these processes that listens on a TCP port. Raises ServerError."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            columns = line.split()
            if columns[3] == LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{columns[9]}]")
    for process in candidates:
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):  # closed meanwhile
                if str(descriptor.readlink()) in sockets:
                    return process
    raise ServerError(f"none of the processes {list(candidates)} listens on port {port}")
