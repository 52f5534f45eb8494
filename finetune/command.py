"""What the command lines of this package share: the process, progress, errors and exit codes."""

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from adapters.errors import AdapterError
from finetune.full_gpu import NotEnoughMemory, told_when_full

Progress = Callable[[str], None]

_TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def prepare_process() -> None:
    """End cleanly on SIGTERM, ask no hub, and let waiting threads sleep."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Threads that wait for each other sleep instead of spinning. Where a server or another run
    # shares the cores, spinning made the same work take 3 to 9 times as long; alone it saves
    # little. OpenMP reads this when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def without_caches() -> None:
    """Start this program again, once, with glibc's caches of small pieces of memory off.

    torch asks for aligned memory, of which glibc cuts a small piece off at the front. While a
    cache holds that piece, what was freed behind it is too small for a tensor of the same size:
    a training step then takes far more memory than it has tensors. glibc reads this only when a
    process begins. What the process starts does not inherit it.
    """
    name = "GLIBC_TUNABLES"
    if os.environ.get(name) == _TUNABLES:
        del os.environ[name]
    elif name not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ[name] = _TUNABLES
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - as it was started


def run_command(
    name: str, work: Callable[[Progress], tuple[str, dict[str, Any]]], *, as_json: bool
) -> int:
    """Do a command's work, with its progress on stderr and its result on stdout.

    Args:
        name: what progress lines begin with.
        work: returns the result as a line of text and as JSON.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    prepare_process()
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    started = time.monotonic()

    def progress(step: str) -> None:
        console.print(f"{name}: {time.monotonic() - started:6.1f} s  {step}")

    try:
        with told_when_full():
            text, answer = work(progress)
    except AdapterError as error:
        tell_error(error, as_json=as_json)
        return 1 if error.retryable or isinstance(error, NotEnoughMemory) else 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(answer, ensure_ascii=False) if as_json else text, flush=True)
    return 0


def tell_error(error: AdapterError, *, as_json: bool, **more: Any) -> None:
    """An error with its hint on stderr and, if asked, as JSON on stdout.

    Args:
        more: further fields of the JSON.
    """
    hint = f"\nhint: {error.hint}" if error.hint else ""
    sys.stderr.write(f"error: {error.message}{hint}\n")
    if as_json:
        about = {
            "code": error.code, "message": error.message, "hint": error.hint, "param": error.param,
            **more,
        }  # fmt: skip
        print(json.dumps({"error": about}, ensure_ascii=False, default=str), flush=True)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt
