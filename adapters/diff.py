"""What differs between two versions, from their manifests."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adapters.records import Version

PARTS = ("task", "languages", "labels", "base", "prompt", "peft", "training", "datasets", "parents")
"""Parts of a manifest, in the order in which they are told; then what it showed, and its size."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field with another value; None where a version lacks it."""

    field: str
    left: Any
    right: Any


def differences(left: Version, right: Version) -> list[Difference]:
    """All differing fields, by dotted path; lists are compared item by item."""
    found: list[Difference] = []
    mine, others = (v.manifest.model_dump(mode="json") for v in (left, right))
    for part in (*PARTS, "checkpoint", "metrics", "live", "gate", "size"):
        a, b = dict(_leaves(part, mine.get(part))), dict(_leaves(part, others.get(part)))
        found += [
            Difference(field, a.get(field), b.get(field))
            for field in dict.fromkeys([*a, *b])
            if a.get(field) != b.get(field)
        ]
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(f"{path}[{number}]", item)
    else:
        yield path, value
