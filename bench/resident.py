"""What a server's processes hold, seen from outside: memory, file descriptors, threads.

Memory is what a process has of its own in RAM (anonymous pages): libraries mapped from files, which
all processes share and the kernel drops as it likes, would hide what grows.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bench.servers import Server, session_processes

MIB = 1024.0


@dataclass(frozen=True)
class Held:
    """By one process."""

    anonymous_mib: float
    resident_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Sample:
    """All processes of a server at one moment, by what they are and their numbers."""

    at_s: float
    cpu_s: float
    processes: dict[str, Held]

    @property
    def anonymous_mib(self) -> float:
        return sum(held.anonymous_mib for held in self.processes.values())


class Samples:
    """Samples of one server, each in a file as soon as it is taken."""

    def __init__(self, server: Server, path: Path) -> None:
        self._server, self._path, self._began = server, path, time.monotonic()
        self.all: list[Sample] = []

    def take(self, **more: float) -> Sample:
        """Look once; `more` is written beside it."""
        found = {
            f"{_role(self._server, pid)} {pid}": held
            for pid in session_processes(self._server.session)
            if (held := _held(pid)) is not None
        }
        at_s = time.monotonic() - self._began
        sample = Sample(round(at_s, 1), round(self._server.all_cpu_s(), 2), found)
        self.all.append(sample)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(sample), **more}) + "\n")
        return sample


@dataclass(frozen=True)
class Window:
    """The samples of a while."""

    samples: Sequence[Sample]

    @classmethod
    def of(cls, samples: Sequence[Sample], from_s: float, to_s: float) -> Self:
        """Raises ValueError: there are none."""
        found = [sample for sample in samples if from_s <= sample.at_s <= to_s]
        if not found:
            raise ValueError(f"no samples between {from_s:g} and {to_s:g} s")
        return cls(found)

    def lasting(self) -> set[str]:
        """The processes that were there all the time."""
        return set.intersection(*(set(sample.processes) for sample in self.samples))

    def median(self, process: str, what: str) -> float:
        figures: list[float] = [getattr(one.processes[process], what) for one in self.samples]
        return statistics.median(figures)

    def median_total_mib(self) -> float:
        return statistics.median(sample.anonymous_mib for sample in self.samples)

    def median_processes(self) -> float:
        return statistics.median(len(sample.processes) for sample in self.samples)


def memory_row(
    process: str, windows: Mapping[str, Window], counts: Sequence[str]
) -> dict[str, float | str]:
    """A measurement of one process: what it held in each window, by the windows' names."""
    row: dict[str, float | str] = {"part": "memory", "process": process.rpartition(" ")[0]}
    for name, window in windows.items():
        row[f"{name} MiB"] = round(window.median(process, "anonymous_mib"), 1)
    for what in counts:
        for name, window in windows.items():
            row[f"{what}, {name}"] = window.median(process, what)
    return row


def _role(server: Server, pid: int) -> str:
    """`api`; of others what their command line says: the engine's are forked from one server."""
    if pid == server.api_process:
        return "api"
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if "multiprocessing.forkserver" in " ".join(words):
            return "engine"
        if "-m" in words:
            return words[words.index("-m") + 1]
    return "other"


def _held(pid: int) -> Held | None:
    """None: it has ended meanwhile."""
    folder = Path(f"/proc/{pid}")
    try:
        kib = _figures((folder / "smaps_rollup").read_text())
        threads = int(_figures((folder / "status").read_text())["Threads"])
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    except (OSError, KeyError):
        return None
    return Held(round(kib["Anonymous"] / MIB, 2), round(kib["Rss"] / MIB, 2), descriptors, threads)


def _figures(text: str) -> dict[str, float]:
    """Of lines such as `Rss:  123 kB`."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            found[name] = float(number[0])
    return found
