"""Builds the image with buildah on a base by debootstrap, runs it with crun: as root, no daemon."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

TOOLS = ("buildah", "debootstrap", "crun")
BASE = "localhost/modiste-test-python:3.11"
DEBIAN = "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
FREE_GB = 25


def lacking(folder: Path) -> str:
    """Why no image can be built here; empty: it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not here (Debian: apt-get install {' '.join(TOOLS)})"
    if os.geteuid() != 0:
        return "only root may make the base and build without user namespaces"
    free = psutil.disk_usage(str(folder)).free
    return "" if free > FREE_GB * 1e9 else f"{free / 1e9:.0f} GB free, {FREE_GB} are needed"


def call(*command: str, log: Path, **environment: str) -> str:
    """Run a command; what it prints on standard output, and all of it in the log."""
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=file, text=True, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        file.write(done.stdout)
    assert done.returncode == 0, f"{command[:4]}: {done.returncode}\n{log.read_text()[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Builder:
    """A store of images of its own."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "build.log"

    def buildah(self, *arguments: str) -> str:
        store = ["--root", str(self.folder / "images"), "--runroot", str(self.folder / "run")]
        return call("buildah", *store, "--storage-driver", "vfs", *arguments, log=self.log).strip()

    def make_base(self) -> None:
        """What the Dockerfile takes for Python's slim image, with this machine's index and CAs."""
        root = self.folder / "base"
        variant = ("--variant=minbase", f"--include={PACKAGES}")
        call("debootstrap", *variant, "bookworm", str(root), DEBIAN, log=self.log)
        for name in ("python", "python3"):
            (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
        certificates = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
        if certificates.is_file():
            shutil.copy(certificates, root / "etc/ssl/certs/ca-certificates.crt")
        (root / "etc/uv").mkdir()
        (root / "etc/uv/uv.toml").write_text("system-certs = true\n" + self._index())
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, str(root), "/")
        self.buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(root)

    def _index(self) -> str:
        """The index that pip uses here, for uv."""
        lines = [f'index-url = "{url}"\n' for url in pip_setting("index-url")]
        return "".join(lines)

    def build(self, context: Path, tag: str, *, target: str) -> None:
        """Build a stage; what lies on this machine's disk for pip is mounted while it is built."""
        options = ["--isolation", "chroot", "--format", "docker", "--target", target, "--tag", tag]
        options += ["--build-arg", f"PYTHON_IMAGE={BASE}"]
        if (torch := self._torch()) is not None:
            options += ["--volume", f"{torch}:{torch}:ro"]
            options += ["--build-arg", f"TORCH_INDEX=file://{torch}"]
        self.buildah("build", *options, str(context))

    def _torch(self) -> Path | None:
        """An index with torch alone, where pip finds its CPU build on the disk."""
        for place in pip_setting("find-links"):
            for wheel in sorted(Path(urlsplit(place).path).glob("torch-*+cpu-cp311-*.whl")):
                index = self.folder / "torch-index"
                (index / "torch").mkdir(parents=True)
                shutil.copy(wheel, index / "torch")
                link = wheel.name.replace("+", "%2B")
                page = f'<!DOCTYPE html><html><body><a href="{link}">{wheel.name}</a></body></html>'
                (index / "torch/index.html").write_text(page)
                return index
        return None

    def inspect(self, tag: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", tag))
        return found["Docker"]["config"]  # type: ignore[no-any-return]

    def unpack(self, tag: str) -> Path:
        """The image's root file system."""
        return Path(self.buildah("mount", self.buildah("from", tag)))


def pip_setting(name: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if key.rpartition(".")[2] == name:
            return value.strip("'\"").split()
    return []


@dataclass
class Container:
    """An image that runs: read-only, without capabilities, on this machine's network.

    `home` is its one folder that can be written, beside /tmp.
    """

    name: str
    bundle: Path
    root: Path
    image: dict[str, Any]
    home: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def _crun(self) -> list[str]:
        """crun without control groups, whose hybrid form it refuses even where it needs none."""
        hidden = 'mount -t tmpfs none /sys/fs/cgroup && exec crun "$@"'
        crun = ["unshare", "--mount", "sh", "-c", hidden, "crun"]
        return [*crun, "--cgroup-manager=disabled", f"--root={self.bundle}/state"]

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.bundle.mkdir(exist_ok=True)
        spec = self._spec([*self.image["Entrypoint"], *arguments], environment)
        (self.bundle / "config.json").write_text(json.dumps(spec))
        with (self.bundle / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._crun, "run", "--bundle", str(self.bundle), self.name],
                stdout=log, stderr=log,
            )  # fmt: skip

    def run(self, *arguments: str) -> str:
        """Run a command of the image to its end."""
        self.start(arguments, {})
        assert self.process is not None
        assert self.process.wait(300) == 0, self.said()
        return self.said()

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(
            [*self._crun, "exec", self.name, *command], capture_output=True, text=True, check=False
        )

    def signal(self, name: str) -> None:
        subprocess.run([*self._crun, "kill", self.name, name], check=True)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            subprocess.run([*self._crun, "kill", self.name, "KILL"], check=False)
            self.process.wait(30)

    def said(self) -> str:
        return (self.bundle / "log").read_text()[-6000:]

    def _spec(self, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        user, group = map(int, self.image["User"].split(":"))
        variables = [f"{key}={value}" for key, value in environment.items()]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.root), "readonly": True},
            "hostname": "modiste",
            "process": {
                "terminal": False, "user": {"uid": user, "gid": group}, "args": arguments,
                "env": [*self.image["Env"], *variables], "cwd": self.image["WorkingDir"],
                "noNewPrivileges": True, "capabilities": {},
            },
            "mounts": [
                mount("/proc", "proc", "proc"),
                mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=65536k"),
                mount("/dev/shm", "tmpfs", "shm", "nosuid", "nodev", "mode=1777", "size=1g"),
                mount("/sys", "none", "/sys", "rbind", "ro"),
                mount("/etc/resolv.conf", "none", "/etc/resolv.conf", "bind", "ro"),
                mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "noexec", "mode=1777"),
                mount(self.image["WorkingDir"], "none", str(self.home), "bind", "rw"),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }  # fmt: skip


def mount(place: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": place, "type": kind, "source": source, "options": list(options)}
