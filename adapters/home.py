"""The home folder: database, bases, versions and runs of one installation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidInput

STORE_CACHE_GIB, MAX_CACHE_GIB = 10.0, 1e6
RESTORING = ".restoring"
"""A file in a home that a backup is coming into; what it says is the backup's digest."""


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
        """SQLite's file, which is used without a `database_url`."""
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
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    @property
    def jobs(self) -> Path:
        """What workers do their jobs in."""
        return self.root / "jobs"

    @property
    def files(self) -> Path:
        """Contents of uploaded files, which are used without a `files_url`."""
        return self.root / "files"

    @property
    def settings(self) -> Path:
        return self.root / "modiste.yaml"

    @property
    def database_url(self) -> str | None:
        """Address of a database elsewhere; it may hold a password.

        Raises:
            InvalidInput: the settings can't be read.
        """
        return self._setting("database_url")

    @property
    def store_url(self) -> str | None:
        """Where versions lie; None: in the folder `store`.

        Raises:
            InvalidInput: modiste.yaml can't be read.
        """
        return self._setting("store_url") or None

    @property
    def files_url(self) -> str | None:
        """Where contents of uploaded files lie; None: in the folder `files`.

        Raises:
            InvalidInput: modiste.yaml can't be read.
        """
        return self._setting("files_url") or None

    @property
    def store_cache_bytes(self) -> int:
        """Most that the folder `store` keeps of a store elsewhere.

        Raises:
            InvalidInput: modiste.yaml can't be read, or the value is no number above 0.
        """
        value = self._setting("store_cache_gib")
        try:
            gib = STORE_CACHE_GIB if value is None else float(value)
        except (TypeError, ValueError):
            gib = 0.0
        if not 0 < gib <= MAX_CACHE_GIB:
            raise InvalidInput(
                f"store_cache_gib is {value!r}",
                hint=f"give it in GiB, above 0, at most {MAX_CACHE_GIB:g}",
                param="store_cache_gib",
            )
        return int(gib * 2**30)

    def configured(self) -> dict[str, Any]:
        """What `modiste.yaml` says, unchecked.

        Raises:
            InvalidInput: it is no mapping; its lines are not repeated, since they may be secret.
        """
        if not self.settings.is_file():
            return {}
        hint = "write one setting a line, `key: value`"
        try:
            values = yaml.safe_load(self.settings.read_text())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = "" if mark is None else f", line {mark.line + 1}"
            problem = getattr(error, "problem", None) or "unreadable"
            raise InvalidInput(
                f"{self.settings}{where}: not valid YAML: {problem}", hint=hint
            ) from None
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise InvalidInput(f"{self.settings}: must be a mapping of settings", hint=hint)
        return {str(key): value for key, value in values.items()}

    def _setting(self, key: str) -> str | None:
        """A setting that both sides need: from the environment, else from the file."""
        value = os.environ.get(f"MODISTE_{key.upper()}")
        if value is None:
            value = self.configured().get(key)
        return None if value is None else str(value)
