"""Reads files as `prepare` does, and keeps what passes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from finetune.reading import Broken, Reading, Record
from finetune.sources import Source, read_files


@dataclass
class Found:
    records: list[Record]
    broken: list[Broken]
    skipped: Counter[str]


def read(*paths: Path, encoding: str | None = None) -> Found:
    reading = Reading()
    sources = [Source(str(path), path) for path in paths]
    records = list(read_files(sources, reading, encoding))
    return Found(records, reading.broken, reading.skipped)
