"""How many requests the engine has that somebody waits for."""

from time import monotonic

from service.record import PRIORITY_INTERACTIVE, Record


class Traffic:
    """Counted where requests enter and leave the engine."""

    def __init__(self) -> None:
        self.interactive = 0
        self._last = float("-inf")

    def enter(self, record: Record) -> None:
        if record.priority == PRIORITY_INTERACTIVE:
            self.interactive += 1
            self._last = monotonic()

    def leave(self, record: Record) -> None:
        if record.priority == PRIORITY_INTERACTIVE:
            self.interactive -= 1
            self._last = monotonic()

    def quiet_s(self) -> float:
        """Seconds since the last such request was there; 0 while one is."""
        return 0.0 if self.interactive else monotonic() - self._last
