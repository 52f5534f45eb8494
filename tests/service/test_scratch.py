"""Folders of killed processes go; those in use stay."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from service.scratch import scratch, sweep

LEAVES = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from service.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def aged(folder: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(folder, (then, then))
    return folder


def test_a_folder_goes_with_its_block(tmp_path: Path) -> None:
    with suppress(RuntimeError), scratch(tmp_path) as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        aged(folder, 3600)
        assert sweep(tmp_path) == 0  # it lives
        process.kill()
        process.wait()
        assert sweep(tmp_path) == 1
    assert not folder.exists()


def test_folders_without_a_lock_are_left_for_a_day(tmp_path: Path) -> None:
    young, old = tmp_path / "tmpyoung", tmp_path / "tmpold"
    young.mkdir()
    old.mkdir()
    (tmp_path / "file").write_text("x")
    aged(young, 3600)
    aged(old, 25 * 3600)
    with scratch(tmp_path) as own:
        assert sweep(tmp_path) == 1
        assert sorted(tmp_path.iterdir()) == sorted([young, own, tmp_path / "file"])
