"""What a trainer begins with: the job's folder, copies of its files, its command line."""

import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path

from adapters.errors import InvalidName
from adapters.registry import Registry
from service.database import JobRow
from service.files import Files

KEPT_EPOCHS = 2
"""Adapters of the ends of epochs that are models beside the final one."""
_CHOOSING = {"training.best_by", "training.patience"}
"""Settings by which the validation file chooses the adapter, and can't judge it any more."""


class Preparation:
    """Prepares jobs of one home."""

    def __init__(self, registry: Registry, files: Files) -> None:
        self._registry, self._files = registry, files

    def command(self, job: JobRow, folder: Path) -> list[str]:
        """Fetch what is not there yet; how the trainer is called.

        Raises:
            FileNotFound: a file of the job is gone.
            StoreFailed, OSError: the store is away, the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"training.keep_epochs": KEPT_EPOCHS, **job.order["settings"]}
        settings |= {
            "name": self._name(job), "project": job.project, "base": job.order["base"],
            "data.train": str(self._fetch(job, job.training_file, folder, "training")),
        }  # fmt: skip
        if job.validation_file is not None:
            place = self._fetch(job, job.validation_file, folder, "validation")
            settings["data.validation"] = str(place)
            if not settings.keys() & _CHOOSING:
                settings["data.test"] = str(place)
        if "parent" in job.order:
            settings["parent"] = job.order["parent"]
        # -P: of the folder in which it works nothing is imported
        return [
            sys.executable, "-P", "-m", "finetune", "run", job.order["recipe"], "--resume",
            "--json", "--folder", str(folder / "run"), "--home", str(self._registry.home.root),
            *(f"--set={name}={json.dumps(value)}" for name, value in settings.items()),
        ]  # fmt: skip

    def _fetch(self, job: JobRow, file_id: str, folder: Path, role: str) -> Path:
        """A copy of a file's content, under a name that tells its format."""
        for entry in folder.iterdir():
            if entry.stem == role:
                return entry  # the job goes on, whatever became of the file
        file = self._files.find(file_id, job.project, f"{role}_file", expired=True)
        place = folder / f"{role}{Path(file.filename).suffix.lower()}"
        partial = place.with_name(f".{place.name}.partial")
        with self._files.content(file) as content:
            shutil.copyfile(content, partial)
        return partial.replace(place)

    def _name(self, job: JobRow) -> str:
        """The adapter's name: the suffix, unless that is another project's or task's."""
        wanted = job.suffix or "tuned"
        own = f"{wanted[:55]}-{sha256(job.id.encode()).hexdigest()[:8]}"
        if job.suffix is None:
            return own
        try:  # now, not when it is published: another job may want it meanwhile
            self._registry.claim(wanted, job.project, job.order["settings"]["task"])
        except InvalidName:
            return own
        return wanted
