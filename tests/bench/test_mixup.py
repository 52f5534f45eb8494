"""What the mix-up benchmark calls right, a tie and wrong."""

from typing import Any

import httpx
import pytest

from bench.mixup import Tally, _compare
from bench.truth import Alone

PROMPT = "p"
MARGINS = (1.0, 0.01, 1.0)
EXPECTED = {
    "a@1": {PROMPT: Alone((1, 2, 3), MARGINS)},
    "a@2": {PROMPT: Alone((4, 2, 3), MARGINS)},
    "a@3": {PROMPT: Alone((1, 5, 3), MARGINS)},
    "tiny": {PROMPT: Alone((7, 7, 7), MARGINS)},
}
DIGESTS = {"a@1": "sha256:1", "a@2": "sha256:2", "a@3": "sha256:3", "tiny": ""}


def judged(asked: str, model: str, token_ids: list[int], digest: str = "") -> Tally:
    body: dict[str, Any] = {"model": model, "choices": [{"token_ids": token_ids}]}
    receipt = f"version={model}; digest={digest or DIGESTS[model]}; proof=proved"
    answer = httpx.Response(200, json=body, headers={"x-modiste-receipt": receipt})
    tally = Tally()
    _compare(tally, (asked, PROMPT), answer, EXPECTED, DIGESTS)
    return tally


@pytest.mark.parametrize(
    ("asked", "model", "token_ids"),
    [("a@1", "a@1", [1, 2, 3]), ("a", "a@2", [4, 2, 3]), ("tiny", "tiny", [7, 7, 7])],
)
def test_a_versions_own_answer_is_right(asked: str, model: str, token_ids: list[int]) -> None:
    tally = judged(asked, model, token_ids)
    assert (tally.right, tally.ties, tally.wrong) == (1, 0, [])


def test_an_answer_that_parts_at_a_tie_is_counted_apart() -> None:
    tally = judged("a@1", "a@1", [1, 9, 9])
    assert (tally.right, tally.ties, tally.wrong) == (0, 1, [])


@pytest.mark.parametrize(
    ("asked", "model", "token_ids", "digest"),
    [
        ("a@1", "a@1", [9, 2, 3], ""),  # parts where the margin is clear
        ("a@1", "a@1", [4, 2, 3], ""),  # another version's answer
        ("a@1", "a@1", [1, 5, 3], ""),  # another's, though it parts at a tie
        ("a@1", "a@1", [7, 7, 7], ""),  # the base's
        ("a@1", "a@2", [4, 2, 3], ""),  # asked for one, told another
        ("a", "tiny", [7, 7, 7], ""),
        ("a@1", "a@1", [1, 2, 3], "sha256:2"),  # the right answer with another's receipt
    ],
)
def test_all_else_is_wrong(asked: str, model: str, token_ids: list[int], digest: str) -> None:
    tally = judged(asked, model, token_ids, digest)
    assert len(tally.wrong) == 1
    assert tally.right == tally.ties == 0
