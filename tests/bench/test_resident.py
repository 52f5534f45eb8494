"""What is seen of a server's processes from outside."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.resident import Held, Sample, Samples, Window
from bench.servers import Server

HOLDS = """
import sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(b"x" * 2**26) if line == "memory\\n" else open("/dev/null"))
    print("done", flush=True)
"""


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    """Holds more for each line that it gets: 64 MiB, or a file."""
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield started
    finally:
        started.communicate()


def hold(process: "subprocess.Popen[str]", *what: str) -> None:
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018
    for one in what:
        process.stdin.write(f"{one}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"


def test_what_a_process_holds_more_is_seen_and_written_at_once(
    process: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    server = Server("a", 0, process.pid, process.pid, "")
    samples = Samples(server, tmp_path / "samples.jsonl")
    hold(process, "file")
    before = samples.take()
    hold(process, "memory", "file", "file", "file")
    after = samples.take(asked=7)
    ((name, first),), ((_, last),) = before.processes.items(), after.processes.items()
    assert name == f"api {process.pid}"
    assert 62 < last.anonymous_mib - first.anonymous_mib < 70
    assert last.descriptors - first.descriptors == 3
    assert after.cpu_s >= before.cpu_s > 0
    written = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [one.get("asked") for one in written] == [None, 7]
    assert written[1]["processes"][name]["anonymous_mib"] == last.anonymous_mib


def sample(at_s: float, **mib: float) -> Sample:
    held = {name: Held(value, 2 * value, 10, 5) for name, value in mib.items()}
    return Sample(at_s, at_s, held)


def test_a_window_has_the_medians_of_its_samples_and_of_processes_that_last() -> None:
    samples = [sample(0, a=900, b=1), sample(1, a=10, b=1), sample(2, a=30), sample(3, a=20, b=5)]

    window = Window.of(samples, 1, 3)

    assert window.lasting() == {"a"}
    assert window.median("a", "anonymous_mib") == 20
    assert window.median("a", "resident_mib") == 40
    assert window.median_total_mib() == 25
    assert window.median_processes() == 2


def test_a_window_without_samples_is_none() -> None:
    with pytest.raises(ValueError, match="no samples between 5 and 6 s"):
        Window.of([sample(0, a=1)], 5, 6)


def test_a_process_that_has_ended_is_left_out(tmp_path: Path) -> None:
    server = Server("a", 0, 2**22, 0, "")  # no such session

    assert Samples(server, tmp_path / "samples.jsonl").take().processes == {}
