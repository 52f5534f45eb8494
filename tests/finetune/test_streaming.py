"""Data is held record by record and row by row, never whole."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.prompt import Renderer
from finetune import languages, sides, spool
from finetune.config import Recipe
from finetune.data import ROWS, load_prepared, prepare, save_prepared
from finetune.examples import examples_of
from finetune.plan import make_plan
from finetune.preflight import check
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


def test_memory_does_not_grow_with_what_is_trained_on(
    tmp_path: Path,
    make_recipe: Callable[..., Recipe],
    renderer: Renderer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 2**16)
    monkeypatch.setattr(sides, "INDEXED", 5)
    monkeypatch.setattr(languages, "_SAMPLE", 5)

    def peak(records: int) -> tuple[int, int]:
        """Bytes in memory at most, and on disk."""
        path = tmp_path / f"{records}.jsonl"
        with path.open("w") as file:
            for n in range(records):
                words = " ".join(f"word{n * 7 % 1000 + k:04}" for k in range(100))
                file.write(json.dumps({"prompt": f"{n:04} {words}", "completion": words}) + "\n")
        recipe = make_recipe("generate", data={"train": str(path), "max_test_examples": 3})
        tracemalloc.start()
        try:
            save_prepared(prepare(recipe, renderer, 4096), tmp_path, "base")
            prepared = load_prepared(tmp_path)
            plan = make_plan(recipe, prepared.of("train"), 10**6)
            assert check(prepared, recipe, plan).examples["train"] > 0.8 * records
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return most, (tmp_path / ROWS).stat().st_size

    peak(20)  # what is loaded once
    few, many = peak(60), peak(140)
    assert (many[0] - few[0]) / 80 < 1024
    assert (many[1] - few[1]) / 80 > 8 * 1024
