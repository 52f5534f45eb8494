"""Files of examples: what is read, and what is reported with file, line and reason."""

from pathlib import Path

import polib
import pytest

from adapters.errors import InvalidInput
from finetune.sources import find_files, read_files


def test_every_broken_json_line_is_reported_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"n": 1}\n{"n": \n\n[1, 2]\n{"n": "\xff"}\n' + b"[" * 100_000 + b'\n{"n": 2}'
    )

    reading = read_files([path])

    assert [record.fields["n"] for record in reading.records] == [1, 2]
    assert [(item.path, item.line) for item in reading.broken] == [
        (str(path), line) for line in (2, 4, 5, 6)
    ]
    reasons = [item.reason for item in reading.broken]
    assert "is not JSON" in reasons[0]
    assert reasons[1:3] == ["is not a JSON object", "is not UTF-8"]


def test_line_separators_inside_json_text_do_not_part_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": "one\u2028two\x85three"}\r\n{"n": "b"}\n', encoding="utf-8")
    reading = read_files([path])
    assert [r.fields["n"] for r in reading.records] == ["one\u2028two\x85three", "b"]
    assert not reading.broken


def test_csv_cells_may_hold_newlines_and_bad_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",x\nonly one\nlast,y\n')

    reading = read_files([path])

    assert [r.fields for r in reading.records] == [
        {"text": "two\nlines", "label": "x"},
        {"text": "last", "label": "y"},
    ]
    assert [(b.line, b.reason) for b in reading.broken] == [(4, "has 1 cells, the header 2")]


def test_quotation_marks_in_tsv_are_only_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('en\tfr\n"Save\t"Enregistrer\nopen\touvrir\n')
    assert [r.fields["en"] for r in read_files([path]).records] == ['"Save', "open"]


def test_catalogues_give_current_singular_translations_and_count_the_rest(tmp_path: Path) -> None:
    catalogue = polib.POFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    catalogue.append(polib.POEntry(msgid="Save", msgstr="Enregistrer"))
    catalogue.append(polib.POEntry(msgid="Open", msgstr=""))
    catalogue.append(polib.POEntry(msgid="Close", msgstr="Fermer", flags=["fuzzy"]))
    catalogue.append(polib.POEntry(msgid="Old", msgstr="Vieux", obsolete=True))
    catalogue.append(
        polib.POEntry(msgid="file", msgid_plural="files", msgstr_plural={0: "a", 1: "b"})
    )
    catalogue.save(str(tmp_path / "a.po"))
    catalogue.save_as_mofile(str(tmp_path / "a.mo"))

    po, mo = read_files([tmp_path / "a.po"]), read_files([tmp_path / "a.mo"])

    assert [r.fields for r in po.records] == [{"source": "Save", "target": "Enregistrer"}]
    assert po.skipped == {
        "untranslated messages": 1, "fuzzy messages": 1, "obsolete messages": 1,
        "plural messages": 1,
    }  # fmt: skip
    assert [r.fields for r in mo.records] == [{"source": "Save", "target": "Enregistrer"}]


def test_a_broken_catalogue_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.po"
    path.write_text('msgid "a"\nmsgstr "b"\nnonsense here\n')
    reading = read_files([path])
    assert [(b.path, b.line) for b in reading.broken] == [(str(path), 3)]


def test_files_are_found_by_name_and_glob_each_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("")
    found = find_files([str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl")], "data.train")
    assert [path.name for path in found] == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize("name", ["missing.jsonl", "*.csv", "notes.docx", ""])
def test_a_pattern_without_usable_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.docx").write_text("")
    with pytest.raises(InvalidInput, match=r"data\.train"):
        find_files([str(tmp_path / name)], "data.train")


def test_a_cut_off_compiled_catalogue_is_reported(tmp_path: Path) -> None:
    whole = polib.POFile()
    whole.append(polib.POEntry(msgid="Save", msgstr="Enregistrer"))
    whole.save_as_mofile(str(tmp_path / "a.mo"))
    for size in (0, 3, 11, 30):
        (tmp_path / "b.mo").write_bytes((tmp_path / "a.mo").read_bytes()[:size])
        assert read_files([tmp_path / "b.mo"]).broken, size
