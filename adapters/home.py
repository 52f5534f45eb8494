"""The home folder: database, bases, versions and runs of one installation."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below `MODISTE_HOME`."""

    root: Path

    @classmethod
    def find(cls, root: Path | None = None) -> "Home":
        """The folder given, else `MODISTE_HOME`, else `~/.modiste`."""
        if root is None:
            root = Path(os.environ.get("MODISTE_HOME") or "~/.modiste")
        return cls(root.expanduser().absolute())

    @property
    def database(self) -> Path:
        return self.root / "modiste.db"

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def settings(self) -> Path:
        return self.root / "modiste.yaml"
