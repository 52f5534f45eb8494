"""Child processes that end with their parent, however that ends."""

import os
import signal
import sys
from collections.abc import Sequence

_SHIM = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, int(sys.argv[2]))  # PR_SET_PDEATHSIG
except (OSError, AttributeError):
    pass  # not Linux
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[3], sys.argv[3:])
"""
"""Asks the kernel, looks whether the parent is still there, and becomes what was asked for. To do
so between fork and exec is not safe in a process with threads."""


def bound(command: Sequence[str], number: int = signal.SIGKILL) -> list[str]:
    """A command whose process gets a signal when the thread that starts it has ended (Linux).

    Args:
        command: the program by its path, and its arguments.
    """
    shim = [sys.executable, "-IS", "-c", _SHIM, str(os.getpid()), str(int(number))]
    return [*shim, *command]
