"""Whether memory is left for a job, on this machine and on its GPU.

What a job needs is what its run measured when it was begun before, else an estimate from the
base's shape, as the trainer itself parts its batches. It is an estimate: a trainer that is
ended for a lack of memory all the same is counted as lost, and its job comes again.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import psutil

from adapters.bases import Base, read_config
from adapters.errors import AdapterError
from service.capacity import BYTES, memory_bytes
from service.engine_plugin import on_cpu

GIB = 2**30
PROCESS_BYTES = GIB
"""The interpreter, its libraries and the data."""
BATCH_TOKENS, LENGTH, USUAL_LENGTH = 2048, 1024, 128
"""Tokens of a batch, of the longest example and of a usual one, where nothing is said."""
TRAINER_SHARE = 0.6
"""Of the whole memory: the trainer parts its batches to stay within it."""
PATIENCE_S = 600.0
_PROJECTED = {"host": 128, "gpu": 512}
"""Tokens that get their logits at once."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a machine or a GPU."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a job takes at its peak."""

    host: int = 0
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a job can't begin: `needs X GiB, Y GiB are …`."""

    message: str
    for_ever: bool


class AtWork(Protocol):
    """A job that takes memory, or will."""

    need: Need
    running: bool
    """It trains: what it takes of a GPU it has taken."""

    @property
    def pid(self) -> int: ...


class Patience:
    """Lets jobs pass one that waits for memory, though not for ever.

    One that was passed for PATIENCE_S keeps those behind it from beginning until no job is at
    work on the machine. Then all memory that jobs can give back is there: it begins, or what it
    lacks is held by others, such as a server, and jobs may pass it for as long again.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def keeps_room(self, job: str, *, alone: bool) -> bool:
        """Whether jobs behind one without room must wait.

        Args:
            alone: no job is at work on this machine.
        """
        since = self._since.setdefault(job, monotonic())
        if alone:
            self._since[job] = monotonic()
            return False
        return monotonic() - since >= PATIENCE_S

    def begun(self, job: str) -> None:
        """It waits no more."""
        self._since.pop(job, None)


def host_memory(group: Path = Path("/sys/fs/cgroup")) -> Memory:
    """This machine's memory, or its container's where that may use less."""
    machine = psutil.virtual_memory()
    total, free = memory_bytes(group / "memory.max"), int(machine.available)
    if total < machine.total:
        try:
            used = int((group / "memory.current").read_text())
            lines = (group / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            return Memory(total, min(total, free))
        # what was read from files is given up where memory is asked for
        cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, max(total - used + cached, 0))
    return Memory(total, free)


def gpu_memory(environment: Mapping[str, str] = os.environ) -> Memory | None:
    """That of the GPU that a trainer would use; None where it uses none, or nothing is told."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    command = shutil.which("nvidia-smi", path=environment.get("PATH"))
    try:
        if command is None or first in ("", "-1") or on_cpu():
            return None
        done = subprocess.run(
            [command, f"--id={first}", "--query-gpu=memory.total,memory.free",
             "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        total, free = (int(part) * 2**20 for part in done.stdout.split(","))
    except (PackageNotFoundError, OSError, subprocess.SubprocessError, ValueError):
        return None
    return Memory(total, free)


def needed(
    base: Base, settings: Mapping[str, Any], run: Path, host: Memory, gpu: Memory | None
) -> Need:
    """What a job takes.

    Args:
        settings: of its recipe, by dotted name.
        run: its folder, where it was begun before.
    """
    size = 4 if gpu is None else BYTES.get(base.ref.dtype, 4)  # on CPU it trains in float32
    memory = host if gpu is None else gpu
    peak = _measured(run)
    if peak is None:
        projected = _PROJECTED["host" if gpu is None else "gpu"]
        peak = base.parameters * size + _step_bytes(base, settings, size, memory, projected)
        peak += PROCESS_BYTES
    if gpu is None:
        return Need(host=peak)
    return Need(host=base.parameters * size + 2 * PROCESS_BYTES, gpu=peak)


def lack(need: Need, at_work: Iterable[AtWork], host: Memory, gpu: Memory | None) -> Lack | None:
    """Why there is no room beside the jobs at work; None where there is."""
    others = list(at_work)
    promised = sum(max(other.need.host - _resident(other.pid), 0) for other in others)
    found = _compare(need.host, host, promised, "")
    if found is None and gpu is not None:
        promised = sum(other.need.gpu for other in others if not other.running)
        found = _compare(need.gpu, gpu, promised, " on the GPU")
    return found


def _compare(need: int, memory: Memory, promised: int, where: str) -> Lack | None:
    if need > memory.total:
        return Lack(f"needs {_gib(need)}, {_gib(memory.total)} are there{where}", for_ever=True)
    free = max(memory.free - promised, 0)
    if need > free:
        return Lack(f"needs {_gib(need)}, {_gib(free)} are free{where}", for_ever=False)
    return None


def _step_bytes(
    base: Base, settings: Mapping[str, Any], size: int, memory: Memory, projected: int
) -> int:
    """What a step keeps for its backward pass; `finetune/memory.py` parts batches by the same."""
    try:
        config = read_config(base.path)
    except AdapterError:
        return GIB
    config = config.get("text_config", config)
    hidden, layers = int(config.get("hidden_size") or 0), int(config.get("num_hidden_layers") or 0)
    if not hidden or not layers:
        return GIB
    inner = int(config.get("intermediate_size") or 4 * hidden)
    layer = 12 * hidden + 2 * inner  # numbers that a layer keeps of a token
    logits = 3 * 4 * projected * int(config.get("vocab_size") or 0)
    longest = _number(settings, "training.max_length", LENGTH)
    longest = min(longest, int(config.get("max_position_embeddings") or longest))
    tokens = _number(settings, "training.batch_tokens", BATCH_TOKENS)
    if "training.batch_size" in settings:
        tokens = _number(settings, "training.batch_size", 1) * USUAL_LENGTH
    tokens = min(tokens, _number(settings, "training.micro_batch_tokens", tokens))
    whole = max(tokens, longest) * layers * layer * size
    least = longest * (layers * hidden + layer) * size  # where most is computed twice
    fitting = int(TRAINER_SHARE * memory.total) - base.parameters * size - logits
    return logits + max(min(whole, fitting), least)


def _measured(run: Path) -> int | None:
    """The peak that the run's check found, bytes; None before there was one."""
    try:
        estimate = json.loads((run / "preflight.json").read_text())["estimate"]
        return int(estimate["peak_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _number(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return int(value) if number and value is not None else default


def _resident(pid: int) -> int:
    """Bytes that a process and what it started hold by now."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(member.memory_info().rss) for member in family)
    except psutil.Error:
        return 0


def _gib(number: int) -> str:
    return f"{number / GIB:.1f} GiB"
