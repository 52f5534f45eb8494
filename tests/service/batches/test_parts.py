"""Answers are joined in the file's order, whatever the order in which they came."""

import json
import random
import resource
from pathlib import Path

import pytest

from adapters.errors import StoreFailed
from adapters.remote import Remote
from service.batches.parts import Joined, Parts
from service.batches.results import ERROR, OUTPUT, Result


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    (tmp_path / "store").mkdir()
    (tmp_path / "scratch").mkdir()
    return Parts(Remote(f"file://{tmp_path / 'store'}", waits_s=()), tmp_path / "scratch")


def result(number: int, kind: str = OUTPUT) -> Result:
    return Result.of(
        number, kind, {"n": number, "text": "tab\there, line\nthere, \u2028 and \ud800"}
    )


def write(parts: Parts, results: list[Result]) -> str:
    return parts.write("batch_a", [one.line() for one in results])


def test_parts_become_two_files(parts: Parts, tmp_path: Path) -> None:
    numbers = list(range(1, 101))
    random.Random(3).shuffle(numbers)
    results = [result(n, ERROR if n % 7 == 0 else OUTPUT) for n in numbers]
    keys = [write(parts, results[at : at + 9]) for at in range(0, 90, 9)]
    assert parts.numbers(keys) == set(numbers[:90])
    joined = parts.join(keys, results[90:], tmp_path)
    output, errors = joined.output, joined.errors
    assert joined.lines == 100
    assert output is not None
    assert errors is not None
    for place, kind in ((output, OUTPUT), (errors, ERROR)):
        lines = place.read_bytes().split(b"\n")[:-1]
        assert lines == [r.text for r in sorted(results, key=lambda r: r.number) if r.kind == kind]
        assert json.loads(lines[0])["text"].endswith("\ud800")
    parts.remove("batch_a", keys)
    with pytest.raises(StoreFailed):
        parts.numbers(keys[:1])
    assert not (tmp_path / "store" / "batches" / "batch_a").exists()


def test_a_line_in_two_parts_is_joined_once(parts: Parts, tmp_path: Path) -> None:
    keys = [write(parts, [result(1), result(2)]), write(parts, [result(2), result(3)])]
    output = parts.join(keys, [result(3, ERROR)], tmp_path).output
    assert output is not None
    assert [json.loads(one)["n"] for one in output.read_text().splitlines()] == [1, 2, 3]


def test_many_parts_need_few_open_files(parts: Parts, tmp_path: Path) -> None:
    keys = [write(parts, [result(n)]) for n in range(1, 81)]
    few = len(list(Path("/proc/self/fd").iterdir())) + 20
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        output = parts.join(keys, [], tmp_path).output
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert output is not None
    assert len(output.read_bytes().splitlines()) == 80


def test_no_answer_makes_no_file(parts: Parts, tmp_path: Path) -> None:
    assert parts.join([], [], tmp_path) == Joined(None, None, 0)
    joined = parts.join([], [result(1, ERROR)], tmp_path)
    assert (joined.output, joined.errors is not None, joined.lines) == (None, True, 1)
