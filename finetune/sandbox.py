"""Whether generated code passes asserts, run in a child process with limits.

This guards against mistakes of a model, not against an attacker: the child is an ordinary
process of the same user. `sandbox_child.py` sets its limits.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune.sandbox_child import PASSED

CPU_S = 5
WALL_S = 15
"""A child that sleeps or waits uses no CPU."""
MEMORY_BYTES = 512 * 1024**2
"""Address space of the child, the interpreter included."""
_AT_ONCE = 2
_CHILD = Path(__file__).with_name("sandbox_child.py")
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def passes(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Of pairs of an answer and asserts, whether the answer's code passes them all."""
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda pair: _passes(code_in(pair[0]), pair[1]), pairs))


def code_in(answer: str) -> str:
    """The first fenced block of an answer, else all of it."""
    found = _FENCED.search(answer)
    return answer if found is None else found[1]


def statements(asserts: str) -> str:
    """The text of a column with asserts, which may be a list of texts or null, as JSON."""
    try:
        found = json.loads(asserts)
    except ValueError:
        return asserts
    return "\n".join(map(str, found)) if isinstance(found, list) else ""


def _passes(code: str, asserts: str) -> bool:
    """Run code, then asserts, in an empty folder, without environment, packages or output."""
    given = json.dumps(
        {"code": code, "asserts": asserts, "cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES}
    )
    with (
        tempfile.TemporaryDirectory() as empty,
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(_CHILD)], cwd=empty, env={},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as child,
    ):  # fmt: skip
        try:
            child.communicate(given.encode(), timeout=WALL_S)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        return child.returncode == PASSED
