"""The requests in the engine that somebody waits for."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from time import monotonic

from service.record import PRIORITY_INTERACTIVE, Record


class Traffic:
    """Counted where requests enter and leave the engine.

    Attributes:
        on_arrival: called for each that enters.
    """

    def __init__(self) -> None:
        self.interactive = 0
        self.on_arrival: list[Callable[[], None]] = []
        self._adapters = Counter[str]()
        self._last = float("-inf")

    @asynccontextmanager
    async def passing(self, record: Record, adapter: str | None) -> AsyncIterator[None]:
        """A sequence in the engine, as soon as its request may have one more there."""
        async with record.sequences or nullcontext():
            self.enter(record, adapter)
            if record.ticket is not None:
                record.ticket.begin()
            try:
                yield
            finally:
                if record.ticket is not None:
                    record.ticket.end()
                self.leave(record, adapter)

    def enter(self, record: Record, adapter: str | None = None) -> None:
        """Count a request.

        Args:
            adapter: that answers it, by its name in the engine; None: the base.
        """
        if record.on_enter is not None:
            record.on_enter()
        if record.priority != PRIORITY_INTERACTIVE:
            return
        self.interactive += 1
        if adapter is not None:
            self._adapters[adapter] += 1
        self._last = monotonic()
        for tell in self.on_arrival:
            tell()

    def leave(self, record: Record, adapter: str | None = None) -> None:
        """Count no longer what `enter` counted."""
        if record.priority != PRIORITY_INTERACTIVE:
            return
        self.interactive -= 1
        if adapter is not None:
            self._adapters[adapter] -= 1
            if not self._adapters[adapter]:
                del self._adapters[adapter]
        self._last = monotonic()

    @property
    def adapters(self) -> set[str]:
        """Those that such requests use, by their names in the engine."""
        return set(self._adapters)

    def quiet_s(self) -> float:
        """Seconds since the last such request was there; 0 while one is."""
        return 0.0 if self.interactive else monotonic() - self._last
