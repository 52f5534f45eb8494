"""A job at work in a child process, and what is read of the folder that it writes."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from service.database import JobRow
from service.jobs.executors import Trainer
from service.jobs.room import Need
from service.jobs.states import (
    Told,
)

_PARAMS = {
    "data": "training_file", "data.train": "training_file", "data.test": "validation_file",
}  # fmt: skip


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
    ends: datetime | None = None
    """Expected."""
    renewed: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.trainer.pid

    def stop(self, why: str) -> None:
        """Ask the trainer to end at its next step; a second time changes nothing."""
        if self.stopping is None:
            self.stopping = why
            self.trainer.terminate()


def step_entries(path: Path) -> list[dict[str, Any]]:
    """The steps of metrics.jsonl, which a resumed run writes anew; none of half a line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def planned_steps(run: Path) -> int | None:
    try:
        plan = json.loads((run / "preflight.json").read_text())["plan"]
    except (OSError, ValueError, KeyError):
        return None
    return int(plan["steps"])


def expected_end(entries: list[dict[str, Any]], steps: int | None) -> datetime | None:
    """When the last step will be done, by how long the last ones took."""
    last = entries[-20:]
    if steps is None or len(last) < 2:
        return None
    each = (last[-1]["time"] - last[0]["time"]) / (len(last) - 1)
    return datetime.now(UTC) + timedelta(seconds=each * max(steps - last[-1]["step"], 0))


def metrics_event(entry: dict[str, Any], steps: int | None) -> Told:
    step, loss = entry["step"], entry["loss"]
    of = "" if steps is None else f"/{steps}"
    data = {"step": step, "train_loss": loss, "total_steps": steps}
    return Told(
        f"step-{step}", f"Step {step}{of}: training loss={loss:.4f}", type="metrics", data=data
    )


def told_error(printed: Path) -> dict[str, Any]:
    """What the trainer says of its failure, with the names that the API has."""
    error: dict[str, Any] = {}
    with suppress(OSError, ValueError, IndexError, TypeError):
        error = json.loads(printed.read_text().strip().splitlines()[-1])["error"]
    if not error:
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
