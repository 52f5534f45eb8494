"""What can be asked of a merge, checked before anything is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.errors import InvalidInput

METHODS = (
    "cat", "svd", "linear", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties",
    "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
"""As peft calls them; the first is the default."""
DENSITY = 0.5


@dataclass(frozen=True, slots=True)
class Mix:
    """How parents are combined; what a method does not use is None."""

    method: str
    weights: tuple[float, ...]
    density: float | None = None
    seed: int | None = None
    rank: int | None = None

    @property
    def needs_equal_ranks(self) -> bool:
        return self.method != "cat" and not cuts(self.method)


def prunes(method: str) -> bool:
    return method.startswith(("ties", "dare", "magnitude_prune"))


def cuts(method: str) -> bool:
    """Whether the result is brought to a rank of choice by a singular value decomposition."""
    return method.endswith("svd")


def averages(method: str) -> bool:
    """Whether the method itself divides by the number of parents that agree."""
    return method.startswith(("ties", "dare_ties"))


def mix_of(method: str, ranks: Sequence[int], weights: str | None, **more: float | None) -> Mix:
    """Check a method's options and fill in what was not given.

    Args:
        ranks: of the parents.
        weights: one number for each parent, with commas between.
        more: density, seed and rank as given, or None.

    Raises:
        InvalidInput: names the option.
    """
    for option, used in (
        ("density", prunes(method)), ("seed", method.startswith("dare")), ("rank", cuts(method)),
    ):  # fmt: skip
        if more.get(option) is not None and not used:
            raise InvalidInput(
                f"--{option} means nothing for {method}",
                hint=f"leave out --{option}, or give another --method",
                param=option,
            )
    density, seed, rank = more.get("density"), more.get("seed"), more.get("rank")
    if density is not None and not 0 < density <= 1:
        raise InvalidInput("--density is a share over 0 and at most 1", param="density")
    if rank is not None and rank < 1:
        raise InvalidInput("--rank is 1 or more", param="rank")
    if seed is not None and not 0 <= seed < 2**63:
        raise InvalidInput("--seed is 0 or more and under 2^63", param="seed")
    return Mix(
        method, _weights(method, weights, len(ranks)),
        density=(DENSITY if density is None else density) if prunes(method) else None,
        seed=int(seed or 0) if method.startswith("dare") else None,
        rank=int(rank or max(ranks)) if cuts(method) else None,
    )  # fmt: skip


def _weights(method: str, given: str | None, parents: int) -> tuple[float, ...]:
    if given is None:
        return (1.0 if averages(method) else 1.0 / parents,) * parents
    try:
        found = tuple(float(part) for part in given.split(","))
    except ValueError:
        found = ()
    if len(found) != parents or not all(math.isfinite(w) and w != 0 for w in found):
        raise InvalidInput(
            f"--weights {given!r} is not {parents} numbers other than 0, one for each parent",
            hint=f"write them as --weights={','.join(['0.5'] * parents)}",
            param="weights",
        )
    return found
