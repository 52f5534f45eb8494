"""HAProxy with the configuration that users get, before servers of a test."""

import csv
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.servers import free_port

CONFIGURATION = Path(__file__).parents[2] / "docs" / "haproxy.cfg"
MISSING = (
    "HAProxy is not here, so several servers behind it were not tried: `apt-get install haproxy`, "
    "or name the program in HAPROXY"
)
WAIT_S = 30


def find_haproxy() -> str | None:
    """The program: named in the environment, on the path, or where Debian puts it."""
    return os.environ.get("HAPROXY") or shutil.which("haproxy", path=f"{os.defpath}:/usr/sbin")


@dataclass(frozen=True)
class Balancer:
    """HAProxy that runs; its servers are modiste-1, modiste-2, …"""

    url: str
    control: Path

    def tell(self, command: str) -> str:
        """What HAProxy answers on its stats socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.control))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def states(self) -> dict[str, str]:
        """UP, DOWN or between, by server."""
        rows = csv.DictReader(self.tell("show stat").removeprefix("# ").splitlines())
        return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("modiste")}

    def wait_for(self, server: str, state: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.states()[server] != state:
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.1)


def configured(ports: Sequence[int], listens: int) -> str:
    """The users' configuration with other addresses, and nothing else changed."""
    text = CONFIGURATION.read_text()
    places = iter((listens, *ports))
    text, count = re.subn(
        r"^( +(?:bind|server modiste-\d) 127\.0\.0\.1:)\d+",
        lambda found: f"{found[1]}{next(places)}",
        text,
        flags=re.MULTILINE,
    )
    assert count == 1 + len(ports)
    return text


@contextmanager
def balancing(program: str, ports: Sequence[int], folder: Path) -> Iterator[Balancer]:
    """Start HAProxy before servers, which need not run yet."""
    listens, control = free_port(), folder / "haproxy.sock"
    (folder / "haproxy.cfg").write_text(configured(ports, listens))
    (folder / "control.cfg").write_text(
        f"global\n    stats socket {control} mode 600 level admin\n"
    )
    command = [program, "-db", "-f", str(folder / "haproxy.cfg"), "-f", str(folder / "control.cfg")]
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        while not control.exists():
            assert process.poll() is None, (folder / "haproxy.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Balancer(f"http://127.0.0.1:{listens}", control)
    finally:
        process.terminate()
        process.wait(10)
