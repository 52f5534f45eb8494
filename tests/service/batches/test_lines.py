"""What of a batch's file can be asked, and what is wrong with the rest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.batches.lines import MAX_LINE_BYTES, MAX_LINES, Index, index_lines, sequences
from service.errors import BadRequest

ENDPOINT = "/v1/generate"


def line(custom_id: Any, **more: Any) -> bytes:
    asked = {
        "custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"prompt": "hi"}
    } | more  # fmt: skip
    return json.dumps({key: value for key, value in asked.items() if value is not None}).encode()


def write(tmp_path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path = tmp_path / "asked.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    return path


def test_lines_are_found_where_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, line("a"), b"", b"  ", line("b"), line("ü"), end=b"")
    index = index_lines(path, ENDPOINT)
    data = path.read_bytes()
    read = [json.loads(data[o : o + n]) for o, n in (index.place(at) for at in index.order)]
    assert [one["custom_id"] for one in read] == ["a", "b", "ü"]
    assert list(index.numbers) == [1, 4, 5]
    assert (index.total, index.faults) == (3, [])


def test_lines_of_one_model_stand_together(tmp_path: Path) -> None:
    models = ["x", "y", "x", None, "y", "x"]
    lines = [line(str(at), body={"model": model}) for at, model in enumerate(models)]
    index = index_lines(write(tmp_path, *lines), ENDPOINT)
    assert list(index.order) == [0, 2, 5, 1, 4, 3]
    assert [index.names[at] for at in index.models] == ["x", "y", "x", "", "y", "x"]
    assert list(index.weights) == [1] * 6


BROKEN = {
    b"{": "invalid_json_line",
    b"[1]": "invalid_json_line",
    b'{"custom_id": "\xff"}': "invalid_json_line",
    b"[" * 200_000: "invalid_json_line",
    line(None): "invalid_custom_id",
    line(""): "invalid_custom_id",
    line(7): "invalid_custom_id",
    line("x" * 513): "invalid_custom_id",
    line("a"): "duplicate_custom_id",
    line("m", method="GET"): "invalid_method",
    line("u", url="/v1/classify"): "invalid_url",
    line("u2", url="http://127.0.0.1/v1/generate"): "invalid_url",
    line("b", body=[1]): "invalid_body",
    line("b2", body=None): "invalid_body",
    line("s", body={"stream": True}): "stream_in_batch",
    line("k", headers={}): "unknown_field",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda raw: raw[:40].decode("latin-1"))
def test_a_broken_line_is_one_fault(tmp_path: Path, broken: bytes) -> None:
    index = index_lines(write(tmp_path, line("a"), broken, line("z")), ENDPOINT)
    (fault,) = index.faults
    assert (fault.number, fault.code) == (2, BROKEN[broken])
    assert fault.message
    assert list(index.numbers) == [1, 3]
    assert index.total == 3


def test_a_line_that_is_too_long_ends_where_it_ends(tmp_path: Path) -> None:
    long = line("l", body={"prompt": "x" * MAX_LINE_BYTES})
    path = write(tmp_path, line("a"), long, line("z"))
    index = index_lines(path, ENDPOINT)
    assert [fault.number for fault in index.faults] == [2]
    offset, length = index.place(1)
    assert json.loads(path.read_bytes()[offset : offset + length])["custom_id"] == "z"


def test_a_line_of_the_greatest_length_is_one_line(tmp_path: Path) -> None:
    room = MAX_LINE_BYTES - len(line("l", body={"prompt": ""}))
    longest = line("l", body={"prompt": "x" * room})
    assert len(longest) == MAX_LINE_BYTES
    for end in (b"", b"\n"):
        index = index_lines(
            write(tmp_path, line("a"), longest, line("z"), longest, end=end), ENDPOINT
        )
        assert list(index.numbers) == [1, 2, 3]
        assert [(fault.number, fault.code) for fault in index.faults] == [
            (4, "duplicate_custom_id")
        ]


SEQUENCES: list[tuple[dict[str, Any], int]] = [
    ({"prompt": "a"}, 1),
    ({"prompt": ["a", "b", "c"]}, 3),
    ({"prompt": [5, 6, 7]}, 1),
    ({"prompt": [[5], [6]]}, 2),
    ({"prompt": []}, 1),
    ({"text": ["a", "b"], "n": 2}, 4),
    ({"question": ["a"] * 256}, 256),
    ({"messages": [], "n": 3}, 3),
    ({"n": "x"}, 1),
    ({"n": -4}, 1),
    ({"n": 10**40}, 2**20),
]


@pytest.mark.parametrize(("body", "expected"), SEQUENCES, ids=lambda value: str(value)[:40])
def test_sequences_of_a_request(body: dict[str, Any], expected: int) -> None:
    assert sequences(body) == expected


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_lines_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="no lines") as error:
        index_lines(path, ENDPOINT)
    assert error.value.code == "empty_file"


def test_too_many_lines_are_refused(tmp_path: Path) -> None:
    lines = [b'{"custom_id": "%d"}' % n for n in range(MAX_LINES)]
    assert index_lines(write(tmp_path, *lines), ENDPOINT).total == MAX_LINES
    with pytest.raises(BadRequest, match="50000") as error:
        index_lines(write(tmp_path, *lines, b"{}"), ENDPOINT)
    assert error.value.code == "too_many_lines"


def test_a_process_of_its_own_finds_the_same(tmp_path: Path) -> None:
    path, out = (
        write(tmp_path, line("a"), b"{", line("b", body={"model": "\ud800"})),
        tmp_path / "index",
    )
    command = [sys.executable, "-m", "service.batches.lines", str(path), ENDPOINT, str(out)]
    done = subprocess.run([*command, "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout) == {"lines": 3}
    assert Index.read(out) == index_lines(path, ENDPOINT)
    path.write_bytes(b"")
    refused = subprocess.run(command, capture_output=True, check=False)
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"]["code"] == "empty_file"
