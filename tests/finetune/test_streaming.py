"""Reading holds records one by one, never the file."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune.config import Recipe
from finetune.examples import examples_of
from finetune.reading import Reading
from finetune.sources import Source, read_files
from finetune.splits import split_examples

RECORDS = 4000
TEXT = "word " * 600  # 3 kB: about 12 MB a file
BOUND = 4 * 2**20


def jsonl() -> Iterator[str]:
    for n in range(RECORDS):
        yield json.dumps({"source": f"{n} {TEXT}", "target": "x"}) + "\n"


def json_in_one_line() -> Iterator[str]:
    yield '{"data": ['
    for n in range(RECORDS):
        yield ("," if n else "") + json.dumps({"source": f"{n} {TEXT}", "target": "x"})
    yield "]}"


def csv() -> Iterator[str]:
    yield "source,target\n"
    yield from (f'"{n}\n{TEXT}",x\n' for n in range(RECORDS))


def tsv() -> Iterator[str]:
    yield "source\ttarget\n"
    yield from (f"{n} {TEXT}\tx\n" for n in range(RECORDS))


def tmx() -> Iterator[str]:
    yield "<tmx><body>"
    for n in range(RECORDS):
        yield f'<tu><tuv lang="en"><seg>{n} {TEXT}</seg></tuv>'
        yield '<tuv lang="fr"><seg>x</seg></tuv></tu>'
    yield "</body></tmx>"


WRITERS = {"jsonl": jsonl, "json": json_in_one_line, "csv": csv, "tsv": tsv, "tmx": tmx}


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_file_is_never_held_in_memory(
    kind: str, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    path = tmp_path / f"a.{kind}"
    with path.open("w") as file:
        file.writelines(WRITERS[kind]())
    assert path.stat().st_size > 2.5 * BOUND
    recipe, reading = make_recipe("translate"), Reading()

    tracemalloc.start()
    try:
        records = read_files([Source(str(path), path)], reading)
        parts = split_examples(examples_of(records, reading, recipe, []), 0.1, 0.0, 50, 50)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert not reading.broken
    assert (len(parts.train), len(parts.test)) == (50, 50)
    assert peak < BOUND
