"""Child processes: what they print, refuse, and leave when they are not waited for."""

import asyncio
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from service.children import Children
from service.errors import BadRequest, NotReady


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `work` whose text the test writes."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a second text may be as long and as old
    return tmp_path / "work.py"


def run(*arguments: str) -> dict[str, object]:
    return asyncio.run(Children().run("work", *arguments))


def test_the_last_line_of_json_is_the_answer(work: Path) -> None:
    work.write_text(
        "import sys, json\nprint('on the way')\nprint(json.dumps({'got': sys.argv[1:]}))"
    )
    assert run("--a=1", "b") == {"got": ["--a=1", "b", "--json"]}


def test_a_refusal_keeps_its_words_and_a_failure_may_be_tried_again(work: Path) -> None:
    error = "{'code': 'unsafe_file', 'message': 'a pickle', 'hint': 'no', 'param': 'source'}"
    for code, kind in ((2, BadRequest), (1, NotReady)):
        work.write_text(
            f"import json, sys\nprint(json.dumps({{'error': {error}}}))\nsys.exit({code})"
        )
        with pytest.raises(kind, match="a pickle") as caught:
            run()
        assert (caught.value.code, caught.value.param) == ("unsafe_file", "source")


def test_a_command_line_that_is_refused_says_which_option(work: Path) -> None:
    work.write_text(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--json')\n"
        "p.add_argument('--method', choices=['cat'])\np.parse_args()"
    )
    with pytest.raises(BadRequest, match="argument --method: invalid choice: 'dog'"):
        run("--method=dog")


def test_a_crash_is_no_refusal(work: Path) -> None:
    work.write_text("import os\nos.abort()")
    with pytest.raises(NotReady, match="ended with -6") as caught:
        run()
    assert caught.value.code == "child_failed"


def test_a_child_that_nobody_waits_for_is_ended(work: Path, tmp_path: Path) -> None:
    work.write_text(
        "import os, time, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    )

    async def give_up() -> None:
        task = asyncio.create_task(Children().run("work"))
        for _ in range(500):
            if (tmp_path / "pid").exists():
                break
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(give_up())
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)


def test_children_follow_one_another(work: Path) -> None:
    work.write_text(
        "import json, time\nbegan = time.time()\ntime.sleep(0.2)\n"
        "print(json.dumps({'at': [began, time.time()]}))"
    )

    async def three() -> list[dict[str, list[float]]]:
        children = Children()
        return await asyncio.gather(*(children.run("work") for _ in range(3)))

    spans = sorted(answer["at"] for answer in asyncio.run(three()))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
