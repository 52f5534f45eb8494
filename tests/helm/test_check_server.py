"""The script of `helm test`, against small servers that behave and misbehave."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helm.rendering import CHART, KEY


@contextmanager
def server(*, ready: int = 200, asks_for_keys: bool = True, models: int = 1) -> Iterator[str]:
    """The URL of a server that knows one key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = not asks_for_keys or self.headers["Authorization"] == f"Bearer {KEY}"
            status = ready if self.path == "/health/ready" else 200 if allowed else 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{}] * models}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def check(url: str, keys_file: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SERVER": url}
    if keys_file is not None:
        environment["KEYS_FILE"] = str(keys_file)
    command = [sys.executable, CHART / "files/check_server.py"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(f"{KEY}\nanother-key-0123456789\n")
    return tmp_path / "keys"


def test_a_good_server_passes(keys_file: Path) -> None:
    with server() as url:
        assert check(url, keys_file).returncode == 0


def test_a_server_without_keys_passes_where_the_values_say_so() -> None:
    with server(asks_for_keys=False) as url:
        assert check(url, None).returncode == 0


def test_a_server_that_forgot_its_keys_fails(keys_file: Path) -> None:
    with server(asks_for_keys=False) as url:
        done = check(url, keys_file)

    assert done.returncode == 1
    assert "FAILED a caller without a key" in done.stdout


def test_a_server_that_is_not_ready_fails(keys_file: Path) -> None:
    with server(ready=503) as url:
        assert "FAILED the server is ready" in check(url, keys_file).stdout


def test_a_server_without_models_fails(keys_file: Path) -> None:
    with server(models=0) as url:
        assert "FAILED at least one model" in check(url, keys_file).stdout
