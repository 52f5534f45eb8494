"""Parts of a cluster: servers that start again on their port, a worker, what they share."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from adapters.bases import Base
from adapters.registry import Registry
from bench.servers import free_port
from tests.adapters.remotes import Proxy
from tests.cluster.balancer import Balancer
from tests.postgres import Postgres
from tests.serving import start, stop


@dataclass
class Member:
    """A server of the cluster."""

    name: str
    home: Path
    port: int = field(default_factory=free_port)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}-{self.starts}.log"

    def start(self) -> None:
        """Until it is ready."""
        self.starts += 1
        self.process, _ = start(self.home, log_name=self.log.name, port=self.port)

    def stop(self) -> int:
        """As an update does it; the exit code."""
        assert self.process is not None
        return stop(self.process)

    def kill(self) -> None:
        """Without a word to anybody."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Worker:
    """`modiste worker`, with a session of its own."""

    home: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "service.cli", "worker", "--home", str(self.home)]
        with (self.home / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> int:
        assert self.process is not None
        return stop(self.process)


@dataclass(frozen=True)
class Cluster:
    """All of it, running."""

    registry: Registry
    base: Base
    members: tuple[Member, Member]
    worker: Worker
    balancer: Balancer
    postgres: Postgres
    s3: Proxy
    key: str
    """Of a caller with a limit that he never reaches."""
    operator: str
    """A key with all scopes."""

    def client(self, url: str, key: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {key or self.operator}"}
        return httpx.Client(base_url=url, headers=headers, timeout=120)
