"""The CPU image: really built, started as it is meant to be, and asked.

Where no image can be built the tests say why; test_dockerfile.py reads the Dockerfile everywhere.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers import free_port
from tests.helm.containers import Builder, Container, lacking
from tests.tiny import make_tiny_base

ROOT = Path(__file__).parents[2]
TAG = "localhost/modiste:test"
START_S = 240
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """With the CPU image built."""
    folder = tmp_path_factory.mktemp("images")
    if reason := lacking(folder):
        pytest.skip(f"no image is built: {reason}; the Dockerfile is read alone")
    builder = Builder(folder)
    builder.make_base()
    builder.build(ROOT, TAG, target="cpu")
    return builder


@pytest.fixture(scope="module")
def image(builder: Builder) -> dict[str, Any]:
    return builder.inspect(TAG)


@pytest.fixture(scope="module")
def root(builder: Builder) -> Path:
    return builder.unpack(TAG)


def container(name: str, root: Path, image: dict[str, Any], home: Path, folder: Path) -> Container:
    return Container(name, folder / name, root, image, home)


@pytest.fixture(scope="module")
def home(root: Path, image: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a base model, which the image's own command added."""
    folder = tmp_path_factory.mktemp("volume")
    home = folder / "home"
    make_tiny_base(home / "incoming")
    for path in (home, *home.rglob("*")):
        os.chown(path, 10001, 10001)
    adding = container("modiste-test-base", root, image, home, folder)
    adding.run("base", "add", f"{image['WorkingDir']}/incoming", "--name", "tiny")
    return home


@pytest.fixture(scope="module")
def server(
    root: Path, image: dict[str, Any], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Container, str]]:
    """The image's own command on a free port, and its address."""
    port = free_port()
    arguments = ["127.0.0.1" if a == "0.0.0.0" else a for a in image["Cmd"]]
    arguments[arguments.index("--port") + 1] = str(port)
    running = container("modiste-test-server", root, image, home, tmp_path_factory.mktemp("run"))
    small = {
        "MODISTE_KV_CACHE_GIB": "1", "MODISTE_WORKER_JOBS": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    running.start(arguments, small)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(running, url)
        yield running, url
    finally:
        running.end()


def _wait(running: Container, url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert running.process is not None
        assert running.process.poll() is None, running.said()
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"not ready after {START_S} s: {running.said()}")


def test_its_configuration_is_the_dockerfiles(image: dict[str, Any]) -> None:
    assert image["User"] == "10001:10001"
    assert image["Entrypoint"] == ["modiste"]
    assert image["Cmd"][0] == "serve"
    assert image["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["Test"][0] == "CMD"
    assert "8321/tcp" in image["ExposedPorts"]
    assert image["Labels"]["org.opencontainers.image.title"] == "modiste"


def test_it_has_neither_compiler_nor_installer_nor_package_lists(root: Path) -> None:
    binaries = {path.name for folder in ("usr/bin", "usr/local/bin", "opt/venv/bin")
                for path in (root / folder).iterdir()}  # fmt: skip

    assert binaries & {"gcc", "cc", "g++", "clang", "make", "ld", "uv"} == set()
    assert list((root / "var/lib/apt/lists").iterdir()) == []
    assert not (root / "build").exists()


def test_bytecode_is_valid_whatever_the_files_times(root: Path) -> None:
    packages = next((root / "opt/venv/lib").glob("python3.*")) / "site-packages"
    for package in ("service", "adapters", "finetune", "fastapi"):
        compiled = list((packages / package / "__pycache__").glob("*.pyc"))
        assert compiled
        # PEP 552: bit 0 says that the hash is what counts, bit 1 that it is not looked at again
        assert {path.read_bytes()[4] for path in compiled} == {0b01}, package


def test_only_the_home_is_anybodys_to_write(root: Path) -> None:
    owned = [path for path in (root / "opt/venv").rglob("*") if path.lstat().st_uid != 0]

    assert owned == []
    assert (root / "var/lib/modiste").stat().st_uid == 10001


def test_it_answers_on_a_read_only_root_as_a_user_without_rights(
    server: tuple[Container, str],
) -> None:
    running, url = server
    question = {"model": "tiny", "messages": [{"role": "user", "content": "open the file"}],
                "max_tokens": 4}  # fmt: skip
    answer = httpx.post(f"{url}/v1/chat/completions", json=question, timeout=120)

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert "proof=base" in answer.headers["x-modiste-receipt"]
    assert "Read-only" in running.exec("touch", "/opt/venv/x").stderr
    status = running.exec("cat", "/proc/1/status").stdout  # the server's
    assert re.search(r"^Uid:(\s+10001){4}$", status, re.MULTILINE), status
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_log_probabilities_need_no_compiler(server: tuple[Container, str]) -> None:
    _, url = server
    question = {"model": "tiny", "prompt": "open", "max_tokens": 2, "logprobs": 3}
    answer = httpx.post(f"{url}/v1/completions", json=question, timeout=120)

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"][0]["logprobs"]["top_logprobs"]) == 2


def test_the_images_health_check_passes_inside(
    server: tuple[Container, str], image: dict[str, Any]
) -> None:
    running, url = server
    command = [part.replace("127.0.0.1:8321", url.removeprefix("http://"))
               for part in image["Healthcheck"]["Test"][1:]]  # fmt: skip
    elsewhere = [part.replace("127.0.0.1:8321", f"127.0.0.1:{free_port()}")
                 for part in image["Healthcheck"]["Test"][1:]]  # fmt: skip

    assert running.exec(*command).returncode == 0
    assert running.exec(*elsewhere).returncode != 0


def test_a_signal_reaches_the_server_and_ends_it_well(server: tuple[Container, str]) -> None:
    running, _ = server
    assert running.process is not None
    running.signal("TERM")

    assert running.process.wait(60) == 0, running.said()
