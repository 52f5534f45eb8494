"""The C library's memory in the process that reads requests: what large bodies took goes back.

glibc gives a large block pages of its own, which the system has back once it is freed. But with
each one freed it raises the size from which it does so, up to 32 MiB: after a few bodies of many
megabytes all later ones lie among small blocks that stay, and what they leave is kept. Setting the
size keeps it (mallopt(3), M_MMAP_THRESHOLD). What a large body was parsed into is small blocks: of
those, free pages are given back some seconds later (malloc_trim(3)).
"""

import asyncio
import ctypes
from typing import Any

LARGE = 256 * 1024
"""Bytes; most bodies are smaller."""
SPARE = 4 * 2**20
"""Bytes, freed at the end of the heap, that are kept for what comes."""
EVERY_S = 5.0
"""Giving back takes some 10 ms, for which other threads may wait."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Heap:
    """This process's, where its C library is glibc; else nothing is done."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(None)
        self._met_large = False

    def note(self, size: int) -> None:
        """A body of so many bytes was read."""
        self._met_large |= size >= LARGE

    async def keep_small(self) -> None:
        """For the rest of the process's life."""
        self.set_up()
        while True:
            await asyncio.sleep(EVERY_S)
            if self._met_large:
                self._met_large = False
                await asyncio.to_thread(self.give_back)

    def set_up(self) -> None:
        """Large blocks keep to pages of their own."""
        if hasattr(self._library, "mallopt"):
            self._library.mallopt(_M_MMAP_THRESHOLD, LARGE)
            self._library.mallopt(_M_TRIM_THRESHOLD, SPARE)

    def give_back(self) -> None:
        """Free pages among small blocks."""
        if hasattr(self._library, "malloc_trim"):
            self._library.malloc_trim(0)


HEAP = Heap()
