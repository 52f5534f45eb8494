"""The demo's server: a child process on a free port of this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from rich.console import Console

from adapters.registry import Registry, Version

START_S = 300
STOP_S = 60
PREFERRED_PORT = 8321


def free_port() -> int:
    """The usual port when it is free, else any."""
    for port in (PREFERRED_PORT, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("no free port on 127.0.0.1")


class DemoServer:
    """`modiste serve`, stopped on the way out whatever happens."""

    def __init__(self, console: Console, log: Path) -> None:
        self._console, self._log = console, log
        self._process: subprocess.Popen[bytes] | None = None
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)

    def start(self) -> None:
        """Start and wait until it is ready.

        Raises:
            RuntimeError: it ended or took too long, with the end of its log.
        """
        self._console.print(f"modiste serve at {self.url}; its log is {self._log}")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )
        started = time.monotonic()
        while time.monotonic() - started < START_S and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    self._console.print(f"ready after {time.monotonic() - started:.0f} s")
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-3000:]}")

    def promote(self, versions: list[Version]) -> None:
        """Promote by the command, as an operator would, and time the first answer."""
        for version in versions:
            command = [sys.executable, "-m", "service.cli", "adapters", "promote"]
            subprocess.run([*command, version.reference, "--why", "the demo"], check=True)
            registry = Registry.open()
            moved = registry.alias_history(version.name)[-1].moved
            body = {"model": version.name, "prompt": "a", "max_tokens": 1}
            answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
            waited = (datetime.now(UTC) - moved).total_seconds()
            if answer.status_code != 200 or answer.json()["model"] != version.reference:
                raise RuntimeError(f"{version.reference} was promoted but does not answer")
            self._console.print(f"{version.reference} answered {waited:.2f} s after its promotion")

    def stay(self) -> None:
        """Serve until Ctrl-C."""
        self._console.print(f"\nStill serving at [bold]{self.url}[/]; Ctrl-C ends it. Try:")
        self._console.print(
            f"  curl {self.url}/v1/translate -H 'content-type: application/json' "
            """-d '{"text": "Save changes?", "target_lang": "fr"}'""",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
        try:
            while self._process is not None and self._process.poll() is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            self._console.print("\nstopping")
