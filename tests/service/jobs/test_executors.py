"""Real trainers as children: they end with their worker, and with all that they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.jobs.executors import Local, LocalTrainer
from service.jobs.room import Need

STARTS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=len(sys.argv) > 1)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(folder: Path, *command: str) -> LocalTrainer:
    trainer = Local().start("job", [sys.executable, "-P", "-c", *command], folder, Need())
    assert isinstance(trainer, LocalTrainer)
    return trainer


def pids(folder: Path) -> list[int]:
    until(lambda: (folder / "printed").read_text().endswith("\n"))
    return [int(word) for word in (folder / "printed").read_text().split()]


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("way", ["kill", "leave"])
def test_what_a_trainer_started_ends_with_it(tmp_path: Path, way: str, own_session: bool) -> None:
    trainer = start(tmp_path, STARTS, *(["x"] if own_session else []))
    pid, child = pids(tmp_path)
    assert pid == trainer.pid
    getattr(trainer, way)()
    until(lambda: trainer.poll() == -signal.SIGKILL)
    until(lambda: not alive(child))
    getattr(trainer, way)()  # a second time changes nothing


def test_what_a_trainer_that_died_left_is_ended(tmp_path: Path) -> None:
    trainer = start(tmp_path, STARTS)
    pid, child = pids(tmp_path)
    os.kill(pid, signal.SIGKILL)
    until(lambda: trainer.poll() is not None)
    until(lambda: not alive(child))


def test_a_trainer_ends_with_its_worker(tmp_path: Path) -> None:
    text = f"""
import sys, time
from pathlib import Path
from service.jobs.executors import Local
from service.jobs.room import Need
command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
Local().start("job", command, Path({str(tmp_path)!r}), Need())
time.sleep(600)
"""
    worker = subprocess.Popen([sys.executable, "-c", text])
    until((tmp_path / "printed").exists)
    (pid,) = pids(tmp_path)
    assert alive(pid)
    worker.kill()
    worker.wait()
    until(lambda: not alive(pid))


def test_one_whose_worker_is_gone_already_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    trainer = start(tmp_path, "print('begun')")
    until(lambda: trainer.poll() is not None)
    assert (tmp_path / "printed").read_text() == ""


def test_no_file_where_it_works_is_taken_for_a_recipe_or_a_module(tmp_path: Path) -> None:
    (tmp_path / "training").write_text("sent by a caller")
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    trainer = start(
        tmp_path,
        "import json, os, sys; print(os.listdir(), os.getsid(0) == os.getpid(), os.nice(0))",
    )
    until(lambda: trainer.poll() is not None)
    assert trainer.poll() == 0
    assert (tmp_path / "printed").read_text().startswith("[] True")
