"""The lines of a batch's file: where each is, whether it can be asked, and in which order.

`python -m service.batches.lines PATH ENDPOINT INDEX` reads them in a process of its own, as
`service.file_checks` does: hundreds of megabytes of JSON would hold up other requests.
"""

import json
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from service.children import refusal
from service.errors import BadRequest, ServiceError

MAX_LINES = 50_000
MAX_LINE_BYTES = 16 * 2**20
MAX_CUSTOM_ID = 512
_MOST_SEQUENCES = 2**20
"""More than any engine runs at once."""
_ARRAYS = ("places", "numbers", "models", "weights", "order")
_KNOWN = frozenset({"custom_id", "method", "url", "body"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is not asked, and why."""

    number: int
    """Counted from 1, empty lines too."""
    custom_id: str | None
    code: str
    message: str
    param: str | None = None


@dataclass(slots=True)
class Index:
    """What a file has, by line.

    Attributes:
        places: byte offset and length of each line that can be asked, [lines, 2], flat.
        models: which of `names` each line asks, [lines].
        weights: sequences that each line takes in the engine, [lines].
        names: of models, in the order in which they come; "" where a line names none.
        order: their indices as they should be asked: those of one model together, which spares
            the engine loads, else as in the file.
        faults: the other lines.
    """

    places: "array[int]" = field(default_factory=lambda: array("q"))
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    models: "array[int]" = field(default_factory=lambda: array("q"))
    weights: "array[int]" = field(default_factory=lambda: array("q"))
    order: "array[int]" = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.numbers) + len(self.faults)

    def place(self, index: int) -> tuple[int, int]:
        return self.places[2 * index], self.places[2 * index + 1]

    def write(self, path: Path) -> None:
        told = {name: getattr(self, name).tolist() for name in _ARRAYS}
        faults = [asdict(fault) for fault in self.faults]
        path.write_text(json.dumps({**told, "names": self.names, "faults": faults}))

    @classmethod
    def read(cls, path: Path) -> Self:
        told = json.loads(path.read_text())
        arrays = {name: array("q", told[name]) for name in _ARRAYS}
        faults = [Fault(**fault) for fault in told["faults"]]
        return cls(**arrays, names=told["names"], faults=faults)


def index_lines(path: Path, endpoint: str) -> Index:
    """Read a file.

    Raises:
        BadRequest: it has too many lines, or none.
    """
    index = Index()
    seen: dict[str, int] = {}
    models: dict[str, int] = {}
    for number, offset, raw in _lines(path):
        if index.total >= MAX_LINES:
            raise BadRequest(
                f"the file has more than {MAX_LINES} lines", param="input_file_id",
                hint="split it into several batches", code="too_many_lines",
            )  # fmt: skip
        value = _line(number, raw, endpoint, seen)
        if isinstance(value, Fault):
            index.faults.append(value)
            continue
        index.places.extend((offset, len(raw)))
        index.numbers.append(number)
        name = str(value["body"].get("model") or "")
        index.models.append(models.setdefault(name, len(models)))
        index.weights.append(sequences(value["body"]))
    if index.total == 0:
        raise BadRequest(
            "the file has no lines", param="input_file_id", code="empty_file",
            hint="write one request a line",
        )  # fmt: skip
    index.names.extend(models)
    index.order.extend(sorted(range(len(index.models)), key=lambda at: index.models[at]))
    return index


def sequences(body: Mapping[str, Any]) -> int:
    """How many sequences a request takes in the engine: prompts or texts, times `n`."""
    prompts = [
        len(given)
        for name in ("prompt", "text", "question")
        if isinstance(given := body.get(name), list) and not _is_tokens(given)
    ]
    n = body.get("n")
    return min(_MOST_SEQUENCES, max([1, *prompts]) * (n if isinstance(n, int) and n > 0 else 1))


def _is_tokens(given: list[Any]) -> bool:
    """One prompt as token ids, which are not many prompts."""
    return bool(given) and isinstance(given[0], int)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of each line that is not empty; of a longer one the beginning."""
    offset = number = 0
    with path.open("rb") as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number, begin = number + 1, offset
            offset += len(raw)
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
                    offset += len(rest)
                offset += len(rest)
            if raw.strip():
                yield number, begin, raw


def _line(number: int, raw: bytes, endpoint: str, seen: dict[str, int]) -> dict[str, Any] | Fault:
    """A request, or what is wrong with its line."""
    value = _object(number, raw)
    if isinstance(value, str):
        return Fault(number, None, "invalid_json_line", value)
    given = value.get("custom_id")
    if not isinstance(given, str) or not 0 < len(given) <= MAX_CUSTOM_ID:
        said = f"custom_id is no text of 1 to {MAX_CUSTOM_ID} characters"
        return Fault(number, None, "invalid_custom_id", said, "custom_id")
    problem = _problem(value, endpoint)
    if problem is None and given in seen:
        problem = "duplicate_custom_id", "custom_id", f"custom_id is that of line {seen[given]} too"
    seen.setdefault(given, number)
    if problem is not None:
        code, param, message = problem
        return Fault(number, given, code, message, param)
    return value


def _object(number: int, raw: bytes) -> dict[str, Any] | str:
    """A line's object, or why it has none."""
    if len(raw.removesuffix(b"\n")) > MAX_LINE_BYTES:
        return f"the line is over {MAX_LINE_BYTES} bytes"
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {error}"[:200]
    return value if isinstance(value, dict) else f"the line is {type(value).__name__}, no object"


def _problem(value: dict[str, Any], endpoint: str) -> tuple[str, str, str] | None:
    """Code, field and words."""
    if unknown := sorted(value.keys() - _KNOWN):
        return "unknown_field", unknown[0][:60], f"{unknown[0][:60]}: unknown field"
    if value.get("method") != "POST":
        return "invalid_method", "method", f"method is {_shown(value.get('method'))}, not POST"
    if value.get("url") != endpoint:
        return (
            "invalid_url", "url",
            f"url is {_shown(value.get('url'))}, and the batch is for {endpoint}",
        )  # fmt: skip
    body = value.get("body")
    if not isinstance(body, dict):
        return "invalid_body", "body", "body is missing or no object"
    if body.get("stream"):
        return "stream_in_batch", "body.stream", "answers of a batch can't be streamed"
    return None


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]


def main(arguments: list[str]) -> int:
    path, endpoint, out = arguments[:3]
    try:
        index = index_lines(Path(path), endpoint)
    except ServiceError as error:
        print(refusal(error))
        return 2
    index.write(Path(out))
    print(json.dumps({"lines": index.total}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
