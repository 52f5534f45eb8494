"""Labels as token sequences, and their probabilities from the engine's scores.

Labels that begin alike share a path: a trie. Where paths part, the model's
probabilities of the next tokens are taken relative to each other; a label's
probability is the product along its path. A label that begins another one ends
there with the end of the turn, which is a token like any other.
"""

import math
from collections.abc import Mapping, Sequence

from service.errors import BadRequest
from service.tasks.wire import MAX_LABELS

Path = tuple[int, ...]


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels without surrounding white space.

    Raises:
        BadRequest: fewer than two, too many, a blank one or one twice.
    """
    if not 2 <= len(labels) <= MAX_LABELS:
        raise BadRequest(
            f"labels has {len(labels)} labels", param="labels", hint=f"give 2 to {MAX_LABELS}"
        )
    stripped = tuple(label.strip() for label in labels)
    seen: dict[str, int] = {}
    for index, label in enumerate(stripped):
        if not label:
            raise BadRequest(f"labels[{index}] is blank", param="labels")
        first = seen.setdefault(label.casefold(), index)
        if first != index:
            raise BadRequest(
                f"labels[{index}] {label!r} is the same label as labels[{first}] "
                f"{stripped[first]!r}",
                param="labels",
                hint="labels differ by more than case and white space",
            )
    return stripped


def branches(sequences: Sequence[Path]) -> dict[Path, Path]:
    """Where label sequences part: from the path so far to the tokens that can follow.

    Raises:
        BadRequest: one sequence begins another, so the model cannot tell them apart.
    """
    following: dict[Path, dict[int, None]] = {}
    for sequence in sequences:
        for length, token in enumerate(sequence):
            following.setdefault(sequence[:length], {})[token] = None
    for index, sequence in enumerate(sequences):
        if sequence in following or sequence in sequences[:index]:
            raise BadRequest(
                f"labels[{index}] reads the same to the model as another label",
                param="labels",
                hint="use labels that differ in letters",
            )
    return {path: tuple(tokens) for path, tokens in following.items() if len(tokens) > 1}


def probabilities(
    sequences: Sequence[Path], scores: Mapping[Path, Mapping[int, float]]
) -> list[float]:
    """The labels' probabilities, which sum to 1.

    `scores` has the log-probabilities of the tokens at every branch.
    """
    local = {path: _normalised(tokens) for path, tokens in scores.items()}
    return [
        math.prod(
            local[sequence[:length]][token]
            for length, token in enumerate(sequence)
            if sequence[:length] in local
        )
        for sequence in sequences
    ]


def _normalised(scores: Mapping[int, float]) -> dict[int, float]:
    highest = max(scores.values())
    if highest == -math.inf:
        return dict.fromkeys(scores, 1 / len(scores))
    weights = {token: math.exp(score - highest) for token, score in scores.items()}
    whole = math.fsum(weights.values())
    return {token: weight / whole for token, weight in weights.items()}
