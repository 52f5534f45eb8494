"""How long a job was at work, in all of its attempts together: kept beside its run."""

from contextlib import suppress
from pathlib import Path
from time import monotonic

NAME = "spent_s"
NOTE_EVERY_S = 30.0


class Hours:
    """Of one attempt, with those before it; pauses and waits don't count."""

    def __init__(self, folder: Path) -> None:
        self._path, self._began = folder / NAME, monotonic()
        self._before_s = 0.0
        with suppress(OSError, ValueError):  # the first attempt, or one that was cut while it wrote
            self._before_s = float(self._path.read_text())
        self._due = self._began + NOTE_EVERY_S

    @property
    def spent_s(self) -> float:
        return self._before_s + monotonic() - self._began

    def note(self, *, now: bool = False) -> None:
        """Keep it for the next attempt, now and then."""
        if now or monotonic() >= self._due:
            self._due = monotonic() + NOTE_EVERY_S
            with suppress(OSError):  # a full disk must not keep a job from ending
                self._path.write_text(f"{self.spent_s:.1f}")
