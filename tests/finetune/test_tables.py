"""Parquet and Arrow, where pyarrow is installed; what is said where it is not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import InvalidInput
from finetune.chats import parse_chat
from finetune.sources import find_files
from tests.finetune.files import read


def test_a_table_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match=r"a\.parquet: Parquet.*pip install pyarrow"):
        read(tmp_path / "a.parquet")


@pytest.fixture
def pyarrow() -> Any:
    pytest.importorskip("pyarrow.parquet")
    return pytest.importorskip("pyarrow")


def write(pyarrow: Any, path: Path, table: Any) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=100)
    elif path.stem == "stream":
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, 100)
    else:
        with pyarrow.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, 100)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_rows_come_in_order_with_their_numbers(pyarrow: Any, tmp_path: Path, name: str) -> None:
    rows = [{"text": f"é{n}", "label": None if n == 3 else "x"} for n in range(700)]
    found = read(write(pyarrow, tmp_path / name, pyarrow.Table.from_pylist(rows)))
    assert [r.fields for r in found.records] == rows
    assert [r.line for r in found.records] == list(range(1, 701))
    assert not found.broken


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow"])
def test_numbers_of_classes_become_the_names_that_datasets_gave_them(
    pyarrow: Any, tmp_path: Path, name: str
) -> None:
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    found = read(write(pyarrow, tmp_path / name, table.replace_schema_metadata(about)))
    assert [r.fields["label"] for r in found.records] == ["yes", "no", -1]


def test_chats_come_out_of_a_table_as_they_went_in(pyarrow: Any, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c", "name": "me"},
        {"role": "assistant", "content": "d"},
    ]
    table = pyarrow.Table.from_pylist([{"messages": messages}])
    (record,) = read(write(pyarrow, tmp_path / "a.parquet", table)).records
    assert list(parse_chat(record.fields, "messages").messages) == messages


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_a_damaged_table_is_told_with_its_file(pyarrow: Any, tmp_path: Path, name: str) -> None:
    table = pyarrow.table({"text": [f"text {n}" for n in range(500)]})
    path = write(pyarrow, tmp_path / name, table)
    whole = path.read_bytes()
    for data in (b"", b"no table", whole[: len(whole) // 2]):
        path.write_bytes(data)
        found = read(path)
        assert [b.path for b in found.broken] == [str(path)], data[:20]
        assert "is not a whole" in found.broken[0].reason or "no records" in found.broken[0].reason


def test_a_folder_that_datasets_saved_is_read_by_its_list(pyarrow: Any, tmp_path: Path) -> None:
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for number, name in enumerate(names):
        table = pyarrow.table({"text": [f"{number}"]})
        with pyarrow.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    listed = {"_data_files": [{"filename": name} for name in names]}
    (tmp_path / "state.json").write_text(json.dumps(listed))
    paths = [s.path for s in find_files([str(tmp_path)], "data.train") if s.path is not None]
    assert [r.fields["text"] for r in read(*paths).records] == ["0", "1"]
