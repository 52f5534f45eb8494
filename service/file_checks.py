"""Whether an uploaded file can be what its purpose says, line by line.

`python -m service.file_checks PATH PURPOSE` does the same in a process of its own: reading
hundreds of megabytes of JSON would hold up all requests that this one answers. What the
lines mean for training is looked at by the job, as `modiste finetune check` does.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.children import refusal
from service.errors import BadRequest, ServiceError

LINES = frozenset({"fine-tune", "batch", "evals"})
"""Purposes whose files have a JSON object a line."""
TABLES = frozenset({".csv", ".tsv", ".parquet", ".json", ".po", ".mo", ".tmx"})
"""Endings of other data that a fine-tuning job reads."""
MAX_BATCH_BYTES = 200 * 2**20
_FORMS = "see the forms of examples in docs/reference.md"
_MAX_LINE = 16 * 2**20
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def checked(filename: str, purpose: str) -> bool:
    """Whether the lines of such a file are looked at.

    Raises:
        BadRequest: no such file has that purpose.
    """
    ending = Path(filename).suffix.lower()
    if purpose not in LINES or ending == ".jsonl":
        return purpose in LINES
    if purpose == "fine-tune" and ending in TABLES:
        return False
    raise BadRequest(
        f"file {filename[:80]!r} is not named as a .jsonl file, which {purpose} needs",
        param="file", code="invalid_file_format",
        hint="upload JSON Lines under a name that ends in .jsonl",
    )  # fmt: skip


def check_lines(path: Path, purpose: str) -> int:
    """Check every line; returns how many have an object.

    Those of a batch are left to it: a broken line is one in its file of errors.

    Raises:
        BadRequest: a line has none, or the file has no line; says where and why.
    """
    if purpose == "batch":
        if path.stat().st_size > MAX_BATCH_BYTES:
            raise _refused(f"a file for batches has at most {MAX_BATCH_BYTES} bytes", "split it")
        return 0
    count = 0
    for number, value in _objects(path):
        count += 1
        if purpose == "fine-tune" and (problem := _chat_problem(value)) is not None:
            raise _refused(f"line {number}: {problem}", _FORMS)
    if count == 0:
        raise _refused("the file has no lines", "write one JSON object a line")
    return count


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise _refused(f"line {number} is over {_MAX_LINE} bytes", "split the example")
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                raise _refused(f"line {number} is not UTF-8", "save the file as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise _refused(
                    f"line {number} is not JSON: {str(error)[:120]}", "write one JSON object a line"
                ) from None
            if not isinstance(value, dict):
                raise _refused(
                    f"line {number} is no JSON object but {type(value).__name__}",
                    "write one JSON object a line",
                )
            yield number, value


def _chat_problem(value: dict[str, Any]) -> str | None:
    """What is wrong with a chat; other forms are the job's to judge, which knows its task."""
    if not value:
        return "an empty object"
    if "messages" not in value:
        return None
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        return "messages is no list with messages"
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            return f"messages[{place}] has no role that is known but {str(role)[:40]!r}"
    learned = any(message["role"] == "assistant" for message in messages)
    return None if learned else "no message of the assistant, so nothing to learn"


def _refused(problem: str, remedy: str) -> BadRequest:
    return BadRequest(problem, param="file", hint=remedy, code="invalid_file_format")


def main(arguments: list[str]) -> int:
    path, purpose = arguments[:2]
    try:
        print(json.dumps({"lines": check_lines(Path(path), purpose)}))
    except ServiceError as error:
        print(refusal(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
