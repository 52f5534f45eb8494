"""Real servers for tests: how one is started, reached and stopped."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from adapters.bases import Base
from adapters.registry import Registry
from bench.servers import free_port

START_S = 300


@dataclass(frozen=True)
class Reached:
    """A server's home and its address."""

    registry: Registry
    base: Base
    url: str
    log: Path

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@dataclass(frozen=True)
class Running(Reached):
    """With its process."""

    process: subprocess.Popen[bytes]


def start(
    home: Path, *arguments: str, log_name: str = "serve.log", port: int = 0, **environment: str
) -> tuple[subprocess.Popen[bytes], str]:
    """Start `modiste serve` and wait until it is ready."""
    port = port or free_port()
    log = (home / log_name).open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port), *arguments],
        env={**os.environ, "MODISTE_HOME": str(home), **environment},
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_S
    try:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    return process, url
            except httpx.TransportError:
                pass
            time.sleep(0.3)
    except BaseException:  # the test was ended
        stop(process)
        raise
    stop(process)
    pytest.fail((home / log_name).read_text()[-4000:])


def stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode
