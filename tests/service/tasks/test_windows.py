"""Windows overlap and cover the text; prompts fit or are refused."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.tasks.windows import room, walk


@given(st.text(alphabet="ab \n", max_size=400), st.integers(1, 60), st.integers(1, 5))
def test_windows_cover_the_text(text: str, size: int, token: int) -> None:
    starts = list(range(0, len(text), token))
    spans = walk(text, starts, size)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (begin, end), (following, later) in pairwise(spans):
        assert begin <= following <= end <= later


def test_text_that_fits_is_one_window() -> None:
    assert walk("abc", [0, 1, 2], 3) == [(0, 3)]


def test_neighbours_share_a_quarter_and_break_between_words() -> None:
    text = "word " * 100
    spans = walk(text, range(0, 500, 5), 40)
    assert [begin for begin, _ in spans] == [0, 150, 300]
    assert spans[0][1] == 200
    assert all(text[begin - 1] == " " for begin, _ in spans[1:])


def test_the_answer_is_bounded_by_what_the_window_has_left() -> None:
    engine = SimpleNamespace(max_model_len=100)
    assert room(engine, range(90), 256, "prompt") == 10
    assert room(engine, range(90), 5, "prompt") == 5


def test_a_prompt_beyond_the_window_names_tokens_and_limit() -> None:
    engine = SimpleNamespace(max_model_len=100)
    with pytest.raises(BadRequest, match=r"120 tokens.*100") as raised:
        room(engine, range(120), 1, "prompt")
    assert raised.value.param == "prompt"
