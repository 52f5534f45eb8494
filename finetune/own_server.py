"""A server of our own: the engine that serves, started to measure versions that need not be live.

It has a registry of its own, with the base and those versions alone, and listens on this machine
only. The trainer knows it as a command and by HTTP.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from adapters.bases import Base
from adapters.errors import StoreFailed
from adapters.home import Home
from adapters.processes import bound
from adapters.registry import Registry

ENGINE_SETTINGS = ("dtype", "max_model_len", "kv_cache_gib", "lora_target_modules", "vllm_args")
"""Settings of the server that decide how it computes; the others are not taken over."""
START_LIMIT_S = 1800.0
_STOP_LIMIT_S = 60.0
_LOG_LINES = 15


class ServerFailed(StoreFailed):
    """A server to measure on did not start, or does not answer: as a rule it never will."""

    code = "server_failed"
    retryable = False


def own_registry(home: Home, place: Path, base: Base) -> Registry:
    """An empty registry in a folder, with one base, and the engine's settings of a home."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    configured = home.configured()
    kept = {key: configured[key] for key in ENGINE_SETTINGS if key in configured}
    own = Home(place)
    own.settings.write_text(yaml.safe_dump(kept), encoding="utf-8")
    registry = Registry.within(own)
    registry.add_base(base)
    return registry


@contextmanager
def serving(registry: Registry, base: Base, log: Path, say: Callable[[str], Any]) -> Iterator[str]:
    """Serve a registry of its own while the block runs. Gives the server's address.

    Raises:
        ServerFailed: the server did not start, with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "service.cli", "serve", "--home", str(registry.home.root),
        "--base", base.name, "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    say(f"starting a server to measure on; its log is {log}")
    with (
        log.open("wb") as out,
        subprocess.Popen(
            bound(command, signal.SIGTERM), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=_environment(), start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            _wait(process, url, log)
            yield url
        finally:
            _stop(process)


def _environment() -> dict[str, str]:
    """Without settings that would lead to another registry, or ask for keys."""
    kept = {f"MODISTE_{key.upper()}" for key in ENGINE_SETTINGS}
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("MODISTE_") or key in kept
    }


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    raise ServerFailed(
        f"the server to measure on did not start:\n{tail}",
        hint="mend what it says, or measure in the trainer's process: evaluation.on_server=false",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the engine that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
