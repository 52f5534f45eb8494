"""Requests that are made before their moments, so that they are sent in time.

A recorded trace has many at one moment: made one by one then, the last would be late by the time
that all the others take.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

Made = TypeVar("Made")

AHEAD = 64
"""So many are ready at most."""
SPARE_S = 0.02
"""With less time until the next one has to go, none is made."""


class Ahead(Generic[Made]):
    """An iterator's values, up to `AHEAD` of them made before they are asked for.

    Args:
        pause: called after each that is made, so that answers are read meanwhile.
    """

    def __init__(self, values: Iterator[Made], pause: Callable[[], object]) -> None:
        self._values, self._pause = values, pause
        self._ready = deque(islice(values, AHEAD))

    def take(self) -> Made | None:
        """The next one; None at the end."""
        if not self._ready:
            self._ready.extend(islice(self._values, 1))
        return self._ready.popleft() if self._ready else None

    def make_until(self, moment: float) -> None:
        """Make more while there is time, as `time.perf_counter` counts."""
        while len(self._ready) < AHEAD and moment - time.perf_counter() > SPARE_S:
            made = list(islice(self._values, 1))
            if not made:
                return
            self._ready += made
            self._pause()
