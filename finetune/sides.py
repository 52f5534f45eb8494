"""Examples that are there twice, and what lies on both sides of the split: exact and near.

Exact means the same input, case and white space aside. Of an example its digests and its
sketch are kept (`duplicates.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from adapters.prompt import Task
from finetune.data import Prepared, Row
from finetune.duplicates import NearIndex, sketch
from finetune.findings import SAMPLES, Finding, finding
from finetune.text_checks import texts_of

INDEXED = 100_000
"""Training inputs with which others are compared for being nearly equal: half a gigabyte."""


@dataclass(slots=True)
class Sides:
    """Numbers of examples."""

    duplicates: int = 0
    contradictions: int = 0
    held_out_duplicates: int = 0
    leaked: int = 0
    validation_leaked: int = 0
    near_duplicates: int = 0
    near_leaked: int = 0
    places: dict[str, list[str]] = field(default_factory=dict)
    """Code of the finding -> places of the first ones, of near ones in pairs."""

    def places_of(self, code: str, places: Iterable[str]) -> int:
        """Count the places, and keep the first ones."""
        count, kept = 0, self.places.setdefault(code, [])
        for place in places:
            count += 1
            if len(kept) < SAMPLES:
                kept.append(place)
        return count

    def findings(self) -> Iterator[Finding]:
        """What of it is wrong."""
        for code, count, told in (
            ("leakage", self.leaked,
             "held-out inputs are also in the training data: remove them from one side, or leave "
             "out data.test to have a clean part held out"),
            ("near_leakage", self.near_leaked,
             "held-out inputs are nearly equal to some in the training data: what is measured "
             "on them says little about new ones"),
            ("validation_leakage", self.validation_leaked,
             "validation inputs are also trained on or held out"),
            ("duplicates", self.duplicates, "training examples are exact duplicates of others"),
            ("near_duplicates", self.near_duplicates,
             "training inputs are nearly equal to others"),
            ("held_out_duplicates", self.held_out_duplicates,
             "held-out examples are exact duplicates of others"),
            ("contradictions", self.contradictions,
             "training inputs have several different answers"),
        ):  # fmt: skip
            if count:
                yield finding(code, f"{count} {told}", count, self.places.get(code, ()))


def compare_sides(prepared: Prepared, task: Task) -> Sides:
    """Count what is there twice."""
    train, test = prepared.of("train"), prepared.of("test")
    validation = prepared.of("validation")
    found = Sides()
    answers: dict[str, int] = {}
    contradicted = set()
    for row in train:
        answer = hash(row.references[0])
        if answers.setdefault(row.key, answer) != answer:
            contradicted.add(row.key)
    found.contradictions = len(contradicted)
    found.duplicates = found.places_of("duplicates", _again(train))
    found.held_out_duplicates = found.places_of("held_out_duplicates", _again(test))
    tested = {row.key: row for row in test}
    found.leaked = found.places_of(
        "leakage", (row.origin for key, row in tested.items() if key in answers)
    )
    found.validation_leaked = found.places_of(
        "validation_leakage",
        (row.origin for row in validation if row.key in answers or row.key in tested),
    )
    _compare_near(found, train, [row for row in tested.values() if row.key not in answers], task)
    return found


def _again(rows: Iterable[Row]) -> Iterator[str]:
    """Places of rows whose input and answers another before them has."""
    seen: set[int] = set()
    for row in rows:
        pair = hash((row.key, tuple(row.references), tuple(row.rejected_ids)))
        if pair in seen:
            yield row.origin
        seen.add(pair)


def _compare_near(found: Sides, train: Sequence[Row], test: Sequence[Row], task: Task) -> None:
    """Held-out inputs with all training inputs, and these with the first of their own."""
    held_out, learned = NearIndex(), NearIndex()
    for number, row in enumerate(test):
        if (of := sketch(*comparable(row, task))) is not None:
            held_out.add(number, of)
    keys: set[int] = set()
    leaked: dict[int, str] = {}

    def near() -> Iterator[str]:
        for number, row in enumerate(train):
            if (key := hash(row.key)) in keys:
                continue  # an exact duplicate
            keys.add(key)
            of = sketch(*comparable(row, task))
            if of is None:
                continue
            for other in held_out.near(of):
                leaked.setdefault(other, row.origin)
            first = next(learned.near(of), None)
            if len(learned) < INDEXED:
                learned.add(number, of)
            if first is not None:
                yield f"{row.origin} and {train[first].origin}"

    found.near_duplicates = found.places_of("near_duplicates", near())
    found.near_leaked = found.places_of(
        "near_leakage",
        (f"{test[number].origin} and {origin}" for number, origin in sorted(leaked.items())),
    )


def comparable(row: Row, task: Task) -> tuple[str, str]:
    """The text by which an input is compared, and what must be equal besides.

    Many questions share a context, and many chats a system message, which says nothing about
    whether they are the same.
    """
    given = row.input
    if task == "answer":
        return str(given["question"]), str(given.get("context"))
    if "messages" in given:
        system = [m["content"] for m in given["messages"] if m["role"] in ("system", "developer")]
        others = [m for m in given["messages"] if m["role"] not in ("system", "developer")]
        return "\n".join(texts_of(others)), "\n".join(system)
    return "\n".join(texts_of({k: v for k, v in given.items() if k != "labels"})), ""
