"""Children that end with their parent: real processes, killed."""

import signal
import subprocess
import sys
import time

import pytest

CHILD = """
import os, signal, time
def told(*_):
    os.write(1, b"told\\n")  # print may be interrupted within itself
    os._exit(0)
signal.signal(signal.SIGTERM, told)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
from adapters.processes import bound
child = subprocess.Popen(bound([sys.executable, "-c", sys.argv[1]], int(sys.argv[2])))
print('started', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_is_told_when_its_parent_is_killed(number: int) -> None:
    command = [sys.executable, "-c", PARENT, CHILD, str(int(number))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert "ready\n" in (parent.stdout.readline(), parent.stdout.readline())
        parent.kill()
        began = time.monotonic()
        left = parent.stdout.read()  # until the child has ended too
        assert time.monotonic() - began < 20
    assert left == ("told\n" if number == signal.SIGTERM else "")
