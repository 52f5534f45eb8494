"""A job at work in a child process, and what is read of the folder that it writes."""

import json
import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

from service.database import JobRow
from service.jobs.executors import Trainer
from service.jobs.hours import Hours
from service.jobs.room import Need
from service.jobs.states import Told

_PARAMS = {
    "data": "training_file", "data.train": "training_file", "data.test": "validation_file",
}  # fmt: skip
_MEASURED = 20
"""Steps by which the time that is left is measured."""


@dataclass(slots=True)
class Attempt:
    """A job at work in a trainer of this worker's."""

    job: JobRow
    folder: Path
    trainer: Trainer
    need: Need
    stopping: str | None = None
    """Why the trainer was asked to stop."""
    told: int = 0
    """The last step that was told."""
    running: bool = False
    trained: bool = False
    again: float = field(default_factory=time.monotonic)
    """Not to be looked after before, `monotonic`."""
    steps: "Steps" = field(init=False)
    hours: Hours = field(init=False)
    untold: list[dict[str, Any]] = field(default_factory=list)
    """Steps that were read and not told yet."""

    def __post_init__(self) -> None:
        self.steps = Steps(self.folder / "run" / "metrics.jsonl")
        self.hours = Hours(self.folder)

    @property
    def pid(self) -> int:
        return self.trainer.pid

    def stop(self, why: str) -> None:
        """Ask the trainer to end at its next step; a second time changes nothing."""
        if self.stopping is None:
            self.stopping = why
            self.trainer.terminate()

    def read_steps(self) -> None:
        """Look for steps that were not told yet."""
        self.untold += self.steps.read()
        self.untold = [entry for entry in self.untold if entry["step"] > self.told]

    def was_told(self, steps: int) -> None:
        """The first of those that were not told were told now."""
        self.told = max([self.told, *(entry["step"] for entry in self.untold[:steps])])
        del self.untold[:steps]


class Steps:
    """metrics.jsonl as it grows: each look reads what is new.

    A resumed run puts another file in its place, which begins anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._offset = -1, 0
        self.tokens = 0
        self.last: deque[dict[str, Any]] = deque(maxlen=_MEASURED)

    def read(self) -> list[dict[str, Any]]:
        """The steps since the last look; none of half a line."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._file or about.st_size < self._offset:
                    self._file, self._offset, self.tokens = about.st_ino, 0, 0
                    self.last.clear()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        entries: list[dict[str, Any]] = [json.loads(line) for line in whole.split(b"\n") if line]
        self.tokens += sum(entry["tokens"] for entry in entries)
        self.last.extend(entries)
        return entries

    def expected_end(self, steps: int | None) -> datetime | None:
        """When the last step will be done, by how long the last ones took."""
        if steps is None or len(self.last) < 2:
            return None
        first, last = self.last[0], self.last[-1]
        each = (last["time"] - first["time"]) / (len(self.last) - 1)
        return datetime.now(UTC) + timedelta(seconds=each * max(steps - last["step"], 0))


def step_entries(path: Path) -> list[dict[str, Any]]:
    """All steps of metrics.jsonl."""
    return Steps(path).read()


def planned_steps(run: Path) -> int | None:
    try:
        plan = json.loads((run / "preflight.json").read_text())["plan"]
    except (OSError, ValueError, KeyError):
        return None
    return int(plan["steps"])


def metrics_event(entry: dict[str, Any], steps: int | None) -> Told:
    step, loss = entry["step"], entry["loss"]
    of = "" if steps is None else f"/{steps}"
    # what is no number can't be told in JSON
    data = {"step": step, "train_loss": loss if isfinite(loss) else None, "total_steps": steps}
    message = f"Step {step}{of}: training loss={loss:.4f}"
    if (held_out := entry.get("validation_loss")) is not None:
        data["valid_loss"] = held_out if isfinite(held_out) else None
        message += f", validation loss={held_out:.4f}"
    return Told(f"step-{step}", message, type="metrics", data=data)


def told_error(printed: Path) -> dict[str, Any]:
    """What the trainer says of its failure, with the names that the API has."""
    error: Any = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        # a line ends with \n alone: what is told may hold what Unicode calls line ends
        last = printed.read_bytes().decode(errors="replace").strip("\n").split("\n")[-1]
        error = json.loads(last)["error"]
    if not isinstance(error, dict) or not {"code", "message"} <= error.keys():
        return {
            "code": "trainer_failed", "param": None,
            "message": "the trainer failed; the worker's log has the reason",
        }  # fmt: skip
    param = error.get("param")
    hint = error.get("hint")
    message = f"{error['message']} ({hint})" if hint else str(error["message"])
    return {
        "code": str(error["code"]), "message": message, "param": _PARAMS.get(str(param), param)
    }  # fmt: skip
