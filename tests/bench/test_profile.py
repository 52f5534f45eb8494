"""The profile: a process that is really sampled, and what is claimed of it."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import profile
from bench.harness import Report
from bench.profile import Found, claim, spy
from bench.stages import OURS, STAGES, seconds_by_stage

BUSY = """
import sys
sys.path.insert(0, sys.argv[1])
from service.auth import caller
print("works", flush=True)
caller()
"""


def test_a_process_is_sampled_and_its_time_told_by_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `bench profile` does it, on a stand-in whose time is all in one place."""
    monkeypatch.setattr(profile, "SECONDS", 1)
    module = tmp_path / "service" / "auth.py"
    module.parent.mkdir()
    (module.parent / "__init__.py").touch()
    module.write_text("def caller():\n    while True:\n        sum(range(1000))\n")
    command = [sys.executable, "-c", BUSY, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for form, name in (("speedscope", "a.json"), ("flamegraph", "a.svg")):
                sampling = spy(process.pid, tmp_path / name, form)
                _, said = sampling.communicate(timeout=60)
                assert sampling.returncode == 0, said.decode()
        finally:
            process.kill()

    found = seconds_by_stage(json.loads((tmp_path / "a.json").read_text()))
    assert {stage.name for stage in found} == {"auth"}
    assert "caller" in (tmp_path / "a.svg").read_text()


def found_of(ours: float, vllms: float, cpu_ms: float) -> Found:
    mine = next(stage for stage in STAGES if stage.whose == OURS)
    its = next(stage for stage in STAGES if stage.whose != OURS)
    return Found(cpu_ms, Counter({mine: ours, its: vllms}))


def test_our_share_is_claimed_at_the_median(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Report("good"), Report("bad")
    claim(good, [found_of(1, 9, 2.0), found_of(1, 4, 2.5), found_of(9, 1, 2.0)])
    claim(bad, [found_of(1, 1, 2.0), found_of(1, 1, 2.0)])

    assert [(one.value, one.holds) for one in good.claims] == [(pytest.approx(0.2), True)]
    assert [(one.value, one.holds) for one in bad.claims] == [(pytest.approx(0.5), False)]
    assert sum(row["CPU ms a request"] for row in bad.measurements[:-1]) == pytest.approx(2.0)
    assert "HTTP, event loop" in capsys.readouterr().out
