"""metrics.jsonl: what each step of a run gave, one JSON object a line."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.files import write_whole


@contextmanager
def metrics_file(path: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Append to metrics.jsonl, after dropping steps that the checkpoint does not have."""
    kept = [entry for entry in read_metrics(path) if entry["step"] <= step]
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    with path.open("a") as file:

        def write(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        yield write


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries of metrics.jsonl; a last line that a crash cut off is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
