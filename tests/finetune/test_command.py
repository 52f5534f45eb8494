"""The process that trains: how it is started."""

import errno
import json
import os
import platform
import subprocess
import sys

import pytest

import finetune.__main__

PROGRAM = """
import os
from pathlib import Path
from finetune.command import without_caches
without_caches()
begun = dict(x.split("=", 1) for x in Path("/proc/self/environ").read_text().split("\\0") if x)
print(begun.get("GLIBC_TUNABLES"), os.environ.get("GLIBC_TUNABLES"))
"""


def told(environment: dict[str, str]) -> list[str]:
    """What the process began with, and what it hands on."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library has no such caches"
)
def test_glibcs_caches_are_off_for_the_process_and_not_for_what_it_starts() -> None:
    without = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    begun, handed_on = told(without)
    assert "tcache_count=0" in begun
    assert handed_on == "None"


def test_settings_of_glibc_that_are_there_are_kept() -> None:
    mine = "glibc.malloc.arena_max=2"
    assert told(os.environ | {"GLIBC_TUNABLES": mine}) == [mine, mine]


def test_a_full_disk_is_told_as_what_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")

    def fail(_options: object) -> None:
        raise error

    monkeypatch.setattr(finetune.__main__, "chosen_recipe", fail)
    assert finetune.__main__.main(["run", "generate", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "store_failed"
    error.errno = errno.EACCES
    with pytest.raises(OSError, match="No space"):
        finetune.__main__.main(["run", "generate", "--json"])
