"""JSON files are read value by value, with the lines at which records begin."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.finetune.files import read

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_any_list_is_read_whatever_the_size_of_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any, indent: Any, named: Any, chunk: int
) -> None:
    monkeypatch.setattr("finetune.json_files._CHUNK", chunk)
    clean = [{k: v for k, v in row.items() if k != "paragraphs"} for row in made]
    text = json.dumps({"version": "1", "data": clean, "n": 12} if named else clean, indent=indent)
    path = tmp_path / "a.json"
    path.write_text(text)
    found = read(path)
    assert [r.fields for r in found.records] == clean
    assert len(found.broken) == (0 if clean else 1)


def squad(impossible: bool | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": "q1",
        "question": "Where?",
        "answers": [{"text": "Paris", "answer_start": 0}],
    }
    none: dict[str, Any] = {"id": "q2", "question": "Why?", "answers": []}
    if impossible is not None:
        answer |= {"is_impossible": False}
        none |= {"is_impossible": True, "plausible_answers": [{"text": "x", "answer_start": 0}]}
    paragraphs = [{"context": "Paris is big.", "qas": [answer, none]}, {"context": "b", "qas": []}]
    return {"version": "v", "data": [{"title": "Paris", "paragraphs": paragraphs}]}


@pytest.mark.parametrize("indent", [None, 2])
def test_squads_nesting_gives_a_record_a_question(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(json.dumps(squad(True), indent=indent))
    found = read(tmp_path / "a.json")
    assert not found.broken
    first, second = found.records
    assert (
        first.fields.items() >= {"context": "Paris is big.", "title": "Paris", "id": "q1"}.items()
    )
    assert second.fields["is_impossible"] is True
    assert first.origin.endswith(f"a.json:{1 if indent is None else 4}#q1")


def test_what_is_wrong_in_squads_nesting_is_told_by_its_place(tmp_path: Path) -> None:
    wrong = [{"context": "a"}, 3, {"context": "b", "qas": [7, {"question": "q", "answers": []}]}]
    text = json.dumps({"data": [{"paragraphs": wrong}, "x"]})
    (tmp_path / "a.json").write_text(text)
    found = read(tmp_path / "a.json")
    assert [r.fields["question"] for r in found.records] == ["q"]
    assert [str(b).rpartition("a.json:")[2] for b in found.broken] == [
        "1#1.1: a paragraph has no list 'qas' of questions",
        "1#1.2: a paragraph has no list 'qas' of questions",
        "1#1.3.1: a question is not a JSON object",
        "1#2: is not a JSON object",
    ]


def test_lines_of_objects_called_json_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"n": 1}\n{"n": 2}\n\n{"n":\n 3}\n')
    found = read(tmp_path / "a.json")
    assert [(r.line, r.fields["n"]) for r in found.records] == [(1, 1), (2, 2), (4, 3)]


@pytest.mark.parametrize(
    ("text", "line", "reason", "kept"),
    [
        ('[{"n": 1},\n{"n": 2,},\n{"n": 3}]', 2, "is not JSON", 1),
        ('[{"n": 1},\n{"n": 2}', 2, "is not JSON: ',' is missing", 2),
        ('[{"n": 1}\n{"n": 2}]', 2, "is not JSON: ',' is missing", 1),
        ('[{"n": 1}]\nx', 2, "something follows the end", 1),
        ('{"data": [{"n": 1}],\n 3: 4}', 2, "a name must be text", 1),
        ('[{"n": "' + "x" * 300 + "\n", 1, "is not JSON: Invalid control character", 0),
        ('[{"n": "open', 1, "is not JSON: Unterminated string", 0),
        ("[" * 100_000, 1, "is nested too deeply", 0),
        ('"text"', 1, "is neither a list nor an object", 0),
        ('[{"n": 1},\n\n{"n": "\udcff"}]', 3, "is not UTF-8: byte 0xff", 0),
    ],
)
def test_a_broken_file_is_told_with_its_line_and_what_came_before_is_kept(
    tmp_path: Path, text: str, line: int, reason: str, kept: int
) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    found = read(tmp_path / "a.json")
    assert len(found.records) == kept
    (broken,) = found.broken
    assert (broken.line, reason in broken.reason) == (line, True), broken
