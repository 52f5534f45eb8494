"""Parquet and Arrow files, read batch by batch with pyarrow where it is installed."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.errors import InvalidInput
from finetune.reading import Entry, Unreadable

_BATCH_ROWS = 256
_STATE = "state.json"


def read_parquet(path: Path, _encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """Rows of a Parquet file, numbered from 1."""
    return _rows(path, "Parquet")


def read_arrow(path: Path, _encoding: str | None, _: Counter[str]) -> Iterator[Entry]:
    """Rows of an Arrow stream or file, numbered from 1."""
    return _rows(path, "Arrow")


def dataset_files(folder: Path, param: str) -> list[Path] | None:
    """The Arrow files of a folder that `datasets` saved, in order; None if it is no such folder.

    Raises:
        InvalidInput: the folder has several splits, or its list of files can't be read.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{_STATE}"))
        raise InvalidInput(
            f"{param}: {folder} has several splits: {', '.join(splits)}",
            hint=f"name one of them, for example {folder / (splits or ['train'])[0]}",
            param=param,
        )
    if not (folder / _STATE).is_file():
        return None
    try:
        listed = json.loads((folder / _STATE).read_text(encoding="utf-8"))["_data_files"]
        # names alone: a folder's list does not lead out of it
        files = [folder / Path(item["filename"]).name for item in listed]
        if lost := [file.name for file in files if not file.is_file()]:
            raise LookupError(lost[0])
        return files
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidInput(
            f"{param}: {folder / _STATE} does not list the files that are there",
            hint="save the dataset again, or name its files (*.arrow, *.parquet)",
            param=param,
        ) from error


def _rows(path: Path, kind: str) -> Iterator[Entry]:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidInput(
            f"{path}: {kind} files are read with pyarrow, which is not installed",
            hint="pip install pyarrow, or save the data as JSONL or CSV",
            param="data",
        ) from error
    number = 0
    try:
        with pa.OSFile(str(path)) as file:
            schema, batches = _batches(pa, file, kind)
            names = _label_names(schema)
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield Entry(number, _named(row, names))
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(number + 1, f"is not a whole {kind} file: {error}") from error


def _batches(pa: Any, file: Any, kind: str) -> tuple[Any, Iterator[Any]]:
    """The schema and batches of a few rows."""
    if kind == "Parquet":
        table = pa.parquet.ParquetFile(file)
        return table.schema_arrow, table.iter_batches(batch_size=_BATCH_ROWS)
    try:
        stream = pa.ipc.open_stream(file)  # what `datasets` saves
    except pa.ArrowInvalid:
        file.seek(0)
        whole = pa.ipc.open_file(file)
        return whole.schema, map(whole.get_batch, range(whole.num_record_batches))
    return stream.schema, iter(stream)


def _label_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, for columns whose numbers `datasets` gave names."""
    about = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(about)["info"]["features"] if about else {}
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError):
        return {}


def _named(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    for column, classes in names.items():
        value = row.get(column)
        if isinstance(value, int) and 0 <= value < len(classes):
            row[column] = classes[value]
    return row
