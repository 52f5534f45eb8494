"""Answers are joined in the file's order, whatever the order in which they came."""

import json
import random
from pathlib import Path

import pytest

from adapters.errors import StoreFailed
from adapters.remote import Remote
from service.batches.parts import ERROR, OUTPUT, Parts, Result


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    (tmp_path / "store").mkdir()
    (tmp_path / "scratch").mkdir()
    return Parts(Remote(f"file://{tmp_path / 'store'}", waits_s=()), tmp_path / "scratch")


def result(number: int, kind: str = OUTPUT) -> Result:
    return Result(number, kind, {"n": number, "text": "tab\there, line\nthere, \u2028 and ü"})


def test_parts_become_two_files(parts: Parts, tmp_path: Path) -> None:
    numbers = list(range(1, 101))
    random.Random(3).shuffle(numbers)
    results = [result(n, ERROR if n % 7 == 0 else OUTPUT) for n in numbers]
    keys = [parts.write("batch_a", results[at : at + 9]) for at in range(0, 90, 9)]
    assert parts.numbers(keys) == set(numbers[:90])
    output, errors = parts.join(keys, results[90:], tmp_path)
    assert output is not None
    assert errors is not None
    for place, kind in ((output, OUTPUT), (errors, ERROR)):
        read = [json.loads(line) for line in place.read_bytes().split(b"\n")[:-1]]
        assert [one["n"] for one in read] == sorted(r.number for r in results if r.kind == kind)
        assert read[0] == result(read[0]["n"]).told
    parts.remove(keys)
    with pytest.raises(StoreFailed):
        parts.numbers(keys[:1])


def test_no_answer_makes_no_file(parts: Parts, tmp_path: Path) -> None:
    assert parts.join([], [], tmp_path) == (None, None)
    output, errors = parts.join([], [result(1, ERROR)], tmp_path)
    assert (output, errors is not None) == (None, True)
