"""`modiste doctor`: what this machine has, what will be used, and what is wrong.

Reads versions from package metadata, so that it works where vllm or torch don't import.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.cached import open_store
from adapters.database_url import find_database, shown
from adapters.errors import AdapterError
from adapters.home import Home
from adapters.registry import Registry
from service import launch
from service.auth import Authenticator
from service.engine_plugin import on_cpu
from service.keys import Keys
from service.settings import SettingsError
from service.settings_sources import load_settings

State = Literal["ok", "warning", "wrong"]
EXPECTED = {"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0", "peft": "0.21.2"}
FREE_GIB = 2
COLOURS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    state: State = "ok"
    remedy: str = ""


def collect(home: Home) -> list[Finding]:
    """Look at everything; never raises for what it finds."""
    checks: tuple[Callable[[Home], Iterator[Finding]], ...] = (
        _machine, _gpu, _packages, _environment, _home, _store, _registry,
    )  # fmt: skip
    return [finding for check in checks for finding in check(home)]


def main(root: Path | None, *, as_json: bool) -> int:
    """Print the findings; 0 when nothing is wrong, else 1."""
    findings = collect(Home.find(root))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    else:
        table = Table("what", "found", "")
        for finding in findings:
            found = finding.found + (f"\n{finding.remedy}" if finding.remedy else "")
            table.add_row(
                finding.what, Text(found), Text(finding.state, style=COLOURS[finding.state])
            )
        Console().print(table)
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def _machine(_home: Home) -> Iterator[Finding]:
    wanted = sys.version_info[:2] == (3, 11)
    yield Finding(
        "Python", platform.python_version(), "ok" if wanted else "wrong",
        "" if wanted else "the locks are for Python 3.11",
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    flags = _cpu_flags()
    vector = next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), "")
    lacks = platform.machine() == "x86_64" and not vector
    yield Finding(
        "CPU", f"{cores} cores, {platform.machine()} {vector}".strip(), "wrong" if lacks else "ok",
        "vLLM's CPU build needs AVX2" if lacks else "",
    )  # fmt: skip
    gib = psutil.virtual_memory().available / 2**30
    yield Finding(
        "memory", f"{gib:.1f} GiB available", "ok" if gib >= 4 else "warning",
        "" if gib >= 4 else "set kv_cache_gib to 1 and a small max_model_len",
    )  # fmt: skip


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def _gpu(_home: Home) -> Iterator[Finding]:
    command = shutil.which("nvidia-smi")
    names: list[str] = []
    if command is not None:
        done = subprocess.run(
            [command, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        names = done.stdout.strip().splitlines() if done.returncode == 0 else []
    try:
        cpu_build = on_cpu()
    except PackageNotFoundError:
        cpu_build = False
    unused = bool(names) and cpu_build
    yield Finding(
        "GPU", "; ".join(names) or "none", "warning" if unused else "ok",
        "vLLM is the CPU build; run make clean setup DEVICE=gpu" if unused else "",
    )  # fmt: skip
    yield Finding("engine runs on", "CPU" if cpu_build else "GPU")


def _packages(_home: Home) -> Iterator[Finding]:
    for name, expected in EXPECTED.items():
        try:
            found = installed(name)
        except PackageNotFoundError:
            yield Finding(name, "not installed", "wrong", "run make setup")
            continue
        right = found.split("+", 1)[0] == expected
        yield Finding(
            name, found, "ok" if right else "wrong",
            "" if right else f"{expected} is locked; run make setup",
        )  # fmt: skip


def _environment(_home: Home) -> Iterator[Finding]:
    for name, why in launch.FORBIDDEN_ENVIRONMENT.items():
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            yield Finding(name, "set", "wrong", f"{why}; unset it")


def _home(home: Home) -> Iterator[Finding]:
    parent = next(p for p in (home.root, *home.root.parents) if p.exists())
    if not os.access(parent, os.W_OK):
        yield Finding(
            "home", str(home.root), "wrong", f"{parent} can't be written; see MODISTE_HOME"
        )
        return
    gib = shutil.disk_usage(parent).free / 2**30
    yield Finding(
        "home", f"{home.root}, {gib:.0f} GiB free", "ok" if gib >= FREE_GIB else "wrong",
        "" if gib >= FREE_GIB else f"{FREE_GIB} GiB are needed for a base model and its versions",
    )  # fmt: skip


def _store(home: Home) -> Iterator[Finding]:
    """Where versions lie, when that is elsewhere."""
    try:
        remote = open_store(home).remote
        if remote is None:
            return
        remote.check()
        gib = home.store_cache_bytes / 2**30
    except AdapterError as error:
        yield Finding("store", error.message, "wrong", error.hint)
        return
    yield Finding("store", f"{remote.url}, of which {gib:g} GiB are kept here")


def _registry(home: Home) -> Iterator[Finding]:
    try:
        url = find_database(home)
    except AdapterError as error:
        yield Finding("database", error.message, "wrong", error.hint)
        return
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield Finding(
            "base models",
            "none",
            "warning",
            "add one with `modiste base add SOURCE`, or make setup",
        )
        return
    try:
        registry = Registry.open(home.root)
        bases = registry.bases()
        adapters = registry.adapters()
    except AdapterError as error:
        yield Finding("database", error.message, "wrong", error.hint)
        return
    yield Finding("database", shown(url))
    yield Finding(
        "base models", ", ".join(base.name for base in bases) or "none",
        "ok" if bases else "warning", "" if bases else "add one with `modiste base add SOURCE`",
    )  # fmt: skip
    live = sum("production" in adapter.aliases for adapter in adapters)
    yield Finding("adapters", f"{len(adapters)}, of them {live} in production")
    if bases:
        yield from _start(home, registry)


def _start(home: Home, registry: Registry) -> Iterator[Finding]:
    """What `modiste serve` would say."""
    try:
        settings = load_settings(home, {})
        keys = Authenticator(settings.keys(), Keys(registry.database)).asks_for_keys
        found = launch.problems(settings, registry.base(settings.base), keys=keys)
    except SettingsError as error:
        found = error.problems
    except AdapterError as error:
        found = [str(error)]
    for problem in found:
        yield Finding("modiste serve", "would not start", "wrong", problem)
    if not found:
        yield Finding("modiste serve", f"would listen on {settings.host}:{settings.port}")
