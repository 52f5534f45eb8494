"""On few cores, vLLM's processes sleep while they wait for each other.

For a second after each message the engine and its worker ask for the next one without a pause
(`SpinCondition` in vLLM's shm_broadcast.py). On two cores whoever asks holds up who would answer,
and the front end: a request beside others waits half a second now and again.
"""

import os
import time
from typing import Any

FEW_CORES = 2
"""More have not been measured."""
SLEEP_S = 0.0001
"""A step of the smallest base takes milliseconds."""


def install() -> None:
    """Change vLLM's wait, in a process that has few cores."""
    if len(os.sched_getaffinity(0)) > FEW_CORES:
        return
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    original = SpinCondition.wait
    if getattr(original, "_sleeps", False):
        return

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        """As the original, which yields the core where this sleeps."""
        if time.monotonic() <= self.last_read + self.busy_loop_s:
            time.sleep(SLEEP_S)
        else:
            original(self, timeout_ms)

    wait._sleeps = True  # type: ignore[attr-defined]
    SpinCondition.wait = wait
