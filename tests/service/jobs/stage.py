"""A worker whose trainers do what a test says, on a home with real files and a real database."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.registry import Registry
from service.database import JobRow
from service.files import About
from service.jobs.attempt import Attempt
from service.jobs.executors import Trainer
from service.jobs.folders import Statuses
from service.jobs.queue import Jobs, Order
from service.jobs.room import Need
from service.jobs.worker import Worker
from tests.adapters.parcels import draft, parcel


@dataclass
class Puppet:
    """A trainer that ends when it is told."""

    code: int | None = None
    asked: bool = False
    left: int = 0
    pid: int = -1

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.asked = True

    def kill(self) -> None:
        self.code = -9

    def leave(self) -> None:
        self.left += 1


@dataclass
class Puppets:
    """Starts them; what it has in `fails` it raises instead, one after the other."""

    shares_memory: bool = False
    started: list[tuple[str, Path, Puppet]] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)

    def stop_orphans(self, statuses: Statuses) -> None:
        """There are none."""

    def start(self, job: str, command: Sequence[str], folder: Path, need: Need) -> Trainer:
        if self.fails:
            raise self.fails.pop(0)
        assert command
        self.started.append((job, folder, Puppet()))
        return self.started[-1][2]


def order(project: str = "ours", **more: Any) -> Order:
    """What a caller may ask for; `more` are fields of it."""
    given = {
        "project": project, "caller": "key_1", "model": "tiny", "training_file": "file-a",
        "validation_file": None, "suffix": None, "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}}, "metadata": None,
        "trainer": {"recipe": "generate", "base": "tiny", "settings": {}, "promote": False},
    } | more  # fmt: skip
    return Order(**given)


class Stage:
    """A worker of a home in a folder."""

    def __init__(self, folder: Path, lease_s: float = 30.0) -> None:
        self.folder, self.registry = folder, Registry.open(folder / "home")
        self.puppets = Puppets()
        self.worker = Worker(self.registry, 9, lease_s, executor=self.puppets)
        (folder / "data.jsonl").write_bytes(b"{}\n")

    @property
    def jobs(self) -> Jobs:
        return self.worker.jobs

    def ask(self, *, promote: bool = False, project: str = "ours", **more: Any) -> JobRow:
        file = self.worker.files.add(
            self.folder / "data.jsonl", About(project, "data.jsonl", "fine-tune")
        )
        trainer = {
            "recipe": "generate", "base": "tiny", "settings": {"task": "generate"},
            "promote": promote,
        }  # fmt: skip
        given = {"training_file": file.id, "trainer": trainer} | more
        return self.jobs.create(order(project, **given))

    def look(self) -> None:
        """As the worker's loop does, once, without waiting."""
        self.worker._look_again = self.worker._reach_again = 0.0
        for attempt in list(self.worker._attempts):
            attempt.again = 0.0
            self.worker._look_after(attempt)
        self.worker._give_back_owed()
        self.worker._begin_next()

    def pass_time(self) -> None:
        """Pauses are over."""
        self.worker._setbacks._pauses.clear()

    def begin(self, **how: Any) -> tuple[JobRow, Attempt, Puppet]:
        job = self.ask(**how)
        self.look()
        (attempt,) = (a for a in self.worker._attempts if a.job.id == job.id)
        return job, attempt, self.puppets.started[-1][2]

    def publish(self, attempt: Attempt, value: float = 1.0) -> str:
        """What a run writes that ended well; the version's reference."""
        folder = parcel(self.folder / f"parcel-{value}-{attempt.job.id}", value)
        version = self.registry.publish(folder, draft(folder, "made"))
        run = attempt.folder / "run"
        (run / "adapter").mkdir(parents=True)
        (run / "preflight.json").write_text(json.dumps({"plan": {"steps": 2}}))
        steps = [{"step": n, "loss": 1.0, "tokens": 5, "time": float(n)} for n in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        told = {"version": version.reference, "checkpoints": []}
        (run / "published.json").write_text(json.dumps(told))
        return version.reference

    def fail(self, attempt: Attempt, code: str, exit_code: int) -> None:
        """The trainer tells an error and ends."""
        error = {"code": code, "message": "said so", "hint": "", "param": None}
        (attempt.folder / "printed").write_text(json.dumps({"error": error}) + "\n")
        assert isinstance(attempt.trainer, Puppet)
        attempt.trainer.code = exit_code

    def found(self, job: JobRow) -> JobRow:
        return self.jobs.find(job.id, job.project)

    def messages(self, job: JobRow) -> list[str]:
        events, _ = self.jobs.events(job.id, job.project, after=None, limit=100)
        return [event.message for event in reversed(events)]
