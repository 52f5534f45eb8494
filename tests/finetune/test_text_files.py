"""Text in the encodings that editors and spreadsheets write, and what is said of the rest."""

import codecs
from pathlib import Path

import pytest

from tests.finetune.files import read

ROWS = [{"text": "déjà vu", "label": "été"}, {"text": "日本 😀", "label": "b"}]
TEXTS = {
    ".jsonl": '{"text": "déjà vu", "label": "été"}\n{"text": "日本 😀", "label": "b"}\n',
    ".json": '[{"text": "déjà vu", "label": "été"},\n {"text": "日本 😀", "label": "b"}]',
    ".csv": "text,label\r\ndéjà vu,été\r\n日本 😀,b\r\n",
    ".tsv": "text\tlabel\ndéjà vu\tété\n日本 😀\tb\n",
}


@pytest.mark.parametrize("kind", sorted(TEXTS))
@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"a{kind}"
    path.write_bytes(TEXTS[kind].encode(name))
    found = read(path, encoding="cp1252" if name != "utf-8" else None)  # the mark wins
    assert ([r.fields for r in found.records], found.broken) == (ROWS, [])


def test_big_endian_text_with_its_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(codecs.BOM_UTF16_BE + TEXTS[".tsv"].encode("utf-16-be"))
    assert [r.fields for r in read(path).records] == ROWS


@pytest.mark.parametrize(("name", "said"), [("latin-1", "été"), ("utf-16-le", "été 日本")])
def test_an_encoding_without_a_mark_can_be_named(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"text,label\n{said},x\n".encode(name))
    assert [r.fields for r in read(path, encoding=name).records] == [{"text": said, "label": "x"}]


def test_latin_1_that_is_not_named_is_told_line_by_line_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "plain"}\n{"text": "caf\xe9"}\n')
    found = read(path)
    assert [r.line for r in found.records] == [1]
    (broken,) = found.broken
    assert broken.line == 2
    assert "byte 0xe9 at character 14" in broken.reason
    assert "data.encoding" in broken.reason


def test_a_header_that_is_not_utf_8_stops_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,cat\xe9gorie\na,b\n")
    (broken,) = read(path).broken
    assert (broken.line, "the header is not UTF-8" in broken.reason) == (1, True)


def test_utf_16_without_a_mark_is_guessed_in_the_message(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes('{"text": "a"}\n'.encode("utf-16-le"))
        found = read(tmp_path / name)
        assert not found.records
        assert "data.encoding=utf-16" in found.broken[0].reason


def test_utf_16_cut_off_in_a_character_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"n": 1}\n{"n": 2}'.encode("utf-16")[:-1])
    found = read(path)
    assert found.broken
    assert all("UTF-16" in b.reason and b.line in (1, 2) for b in found.broken)


def test_a_line_without_end_is_told_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.text_files.MAX_CHARS", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": "' + "x" * 100 + '"}\n')
    found = read(path)
    assert [r.fields for r in found.records] == [{"n": 1}]
    assert [(b.line, b.reason) for b in found.broken] == [(2, "is longer than 100 characters")]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "text;label\na;b\n", "cells are parted by ';', in CSV they are by commas"),
        ("a.csv", "text\tlabel\na\tb\n", "cells are parted by '\\t', in CSV"),
        ("a.tsv", "text,label\na,b\n", "cells are parted by ',', in TSV they are by tabs"),
        ("a.csv", "text,text\na,b\n", "names the column 'text' twice"),
        ("a.csv", 'text,label\n"a,b\n', "is not CSV: unexpected end of data"),
    ],
)
def test_a_table_of_another_form_says_which(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    found = read(tmp_path / name)
    assert not found.records
    assert reason in found.broken[0].reason
