"""Runs code and asserts from stdin under limits. `sandbox.py` starts it with `-I -S`.

Limits of the kernel come first, then a hook that refuses what a mistake in the code could do
to this machine. The hook is no wall: code that wants to get around it can.
"""

import json
import os
import resource
import sys
import types
from typing import Any

PASSED = 87
"""Exit code of code that passed: a `sys.exit()` in it is not taken for that."""

_OPEN_FILES = 32
_HARMLESS = {
    "os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr",
    "os.putenv", "os.unsetenv", "socket.__new__",  # asyncio makes a pair of sockets
}  # fmt: skip
_REFUSED = {
    "ctypes", "fcntl", "os", "pty", "resource", "shutil", "signal", "socket", "sqlite3",
    "subprocess", "webbrowser",
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def set_limits(cpu_s: int, memory_bytes: int) -> None:
    """Bound time, memory, files and processes, for good."""
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: no processes, network or changes of files."""
    if event == "open":
        flags = arguments[2]
        refused = isinstance(flags, int) and bool(flags & _WRITING)
    else:
        refused = event.partition(".")[0] in _REFUSED and event not in _HARMLESS
    if refused:
        raise PermissionError(f"{event} is refused")


def main() -> None:
    given = json.loads(sys.stdin.buffer.read())
    set_limits(given["cpu_s"], given["memory_bytes"])
    module = types.ModuleType("answer")
    sys.modules["answer"] = module  # dataclasses look for it
    sys.addaudithook(refuse)
    try:
        for part in ("code", "asserts"):
            exec(compile(given[part], part, "exec"), module.__dict__)  # noqa: S102  # its purpose
    except BaseException:  # noqa: BLE001  # SystemExit too
        os._exit(1)
    os._exit(PASSED)


if __name__ == "__main__":
    main()
