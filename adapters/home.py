"""The home folder: database, bases, versions and runs of one installation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidInput

STORE_CACHE_GIB, MAX_CACHE_GIB = 10.0, 1e6


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

    @property
    def store_url(self) -> str | None:
        """Where versions lie; None: in the folder `store`.

        Raises:
            InvalidInput: modiste.yaml can't be read.
        """
        url = self._setting("store_url")
        return None if url is None or url == "" else str(url)

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

    def _setting(self, key: str) -> Any:
        """What the environment or modiste.yaml says; `service.settings` checks the rest of it."""
        value = os.environ.get(f"MODISTE_{key.upper()}")
        if value is not None or not self.settings.is_file():
            return value
        try:
            values = yaml.safe_load(self.settings.read_text())
        except OSError as error:
            problem = error.strerror
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            # the whole message would show the lines, and keys in them
            problem = "not valid YAML" + (f" at line {mark.line + 1}" if mark else "")
        else:
            return values.get(key) if isinstance(values, dict) else None
        raise InvalidInput(f"{self.settings}: {problem}", hint="correct it", param=key)
