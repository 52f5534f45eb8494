"""Files of examples: what is read, and what is reported with file, line and reason."""

import json
from pathlib import Path

import polib
import pytest

from adapters.errors import InvalidInput
from finetune.reading import Broken, BrokenData, Reading
from finetune.sources import find_files
from tests.finetune.files import read


def test_every_broken_json_line_is_reported_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"n": 1}\n{"n": \n\n[1, 2]\n{"n": "\xff"}\n' + b"[" * 100_000 + b'\n{"n": 2}'
    )

    reading = read(path)

    assert [record.fields["n"] for record in reading.records] == [1, 2]
    assert [(item.path, item.line) for item in reading.broken] == [
        (str(path), line) for line in (2, 4, 5, 6)
    ]
    reasons = [item.reason for item in reading.broken]
    assert "is not JSON" in reasons[0]
    assert reasons[1] == "is not a JSON object"
    assert reasons[2].startswith("is not UTF-8: byte 0xff at character 8 (save the file as UTF-8")


def test_line_separators_inside_json_text_do_not_part_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": "one\u2028two\x85three"}\r\n{"n": "b"}\n', encoding="utf-8")
    reading = read(path)
    assert [r.fields["n"] for r in reading.records] == ["one\u2028two\x85three", "b"]
    assert not reading.broken


def test_csv_cells_may_hold_newlines_and_bad_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",x\nonly one\nlast,y\n')

    reading = read(path)

    assert [r.fields for r in reading.records] == [
        {"text": "two\nlines", "label": "x"},
        {"text": "last", "label": "y"},
    ]
    assert [(b.line, b.reason) for b in reading.broken] == [(4, "has 1 cells, the header 2")]


def test_quotation_marks_in_tsv_are_only_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('en\tfr\n"Save\t"Enregistrer\nopen\touvrir\n')
    assert [r.fields["en"] for r in read(path).records] == ['"Save', "open"]


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

    po, mo = read(tmp_path / "a.po"), read(tmp_path / "a.mo")

    assert [r.fields for r in po.records] == [{"source": "Save", "target": "Enregistrer"}]
    assert po.skipped == {
        "untranslated messages": 1, "fuzzy messages": 1, "obsolete messages": 1,
        "plural messages": 1,
    }  # fmt: skip
    assert [r.fields for r in mo.records] == [{"source": "Save", "target": "Enregistrer"}]


def test_a_broken_catalogue_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.po"
    path.write_text('msgid "a"\nmsgstr "b"\nnonsense here\n')
    reading = read(path)
    assert [(b.path, b.line) for b in reading.broken] == [(str(path), 3)]


def test_files_are_found_by_name_and_glob_each_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("")
    found = find_files([str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl")], "data.train")
    assert [Path(source.name).name for source in found] == ["b.jsonl", "a.jsonl"]


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
        assert read(tmp_path / "b.mo").broken, size


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.csv", ""), ("a.csv", "text,label\n"),
        ("a.tsv", ""),
        ("a.json", ""), ("a.json", "[]"), ("a.json", '{"data": []}'), ("a.tmx", "<tmx/>"),
        ("a.po", ""),
    ],
)  # fmt: skip
def test_a_file_without_records_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read(tmp_path / name)
    assert not found.records
    assert [str(b) for b in found.broken] == [
        f"{tmp_path / name}:1: has no records: fill it or leave it out"
    ]


def test_a_catalogue_of_untranslated_messages_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.po").write_text('msgid "Save"\nmsgstr ""\n')
    found = read(tmp_path / "a.po")
    assert (found.broken, found.skipped) == ([], {"untranslated messages": 1})


def test_a_file_that_may_not_be_read_is_noted_and_the_next_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"n": 1}\n')
    found = read(tmp_path / "gone.jsonl", tmp_path / "b.jsonl")
    assert [r.fields for r in found.records] == [{"n": 1}]
    assert [(Path(b.path).name, b.line) for b in found.broken] == [("gone.jsonl", 1)]


def test_one_reason_met_in_many_lines_is_told_in_few() -> None:
    reading = Reading()
    for line in range(1, 50_001):
        reading.note(Broken("a.csv", line, "'text' is missing"))
    reading.note(Broken("b.csv", 7, "'text' is empty"))

    message = BrokenData(reading).message

    assert "50001 broken lines" in message
    assert "a.csv:1: 'text' is missing" in message
    assert len(message.splitlines()) < 10
    assert len(reading.broken) == 10_000  # and no more is held


def test_a_folder_of_several_splits_asks_for_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"has several splits: test, train .*name one of them"):
        find_files([str(tmp_path)], "data.train")


@pytest.mark.parametrize("listed", ["[]", "{}", '{"_data_files": [{"filename": "../x.arrow"}]}'])
def test_a_saved_folder_with_a_wrong_list_of_files_is_refused(tmp_path: Path, listed: str) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "x.arrow").write_bytes(b"")  # outside of the folder
    (tmp_path / "saved" / "state.json").write_text(listed)
    with pytest.raises(InvalidInput, match=r"does not list the files that are there"):
        find_files([str(tmp_path / "saved")], "data.train")


def test_the_files_of_a_saved_folder_are_read_in_its_order(tmp_path: Path) -> None:
    names = ["data-00001.arrow", "data-00000.arrow"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    listed = {"_data_files": [{"filename": name} for name in names]}
    (tmp_path / "state.json").write_text(json.dumps(listed))
    assert [Path(s.name).name for s in find_files([str(tmp_path)], "data.train")] == names
