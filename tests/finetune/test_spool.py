"""What lies on disk reads as a list would."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import spool as module
from finetune.spool import Chosen, Spool, where


def encode(item: Any) -> bytes:
    return json.dumps(item).encode() + b"\n"


def spool_of(items: list[Any]) -> Spool[Any]:
    spool: Spool[Any] = Spool(encode, json.loads)
    for item in items:
        spool.append(item)
    return spool


@given(st.lists(st.text() | st.integers()), st.slices(20))
def test_it_reads_as_a_list_does(items: list[Any], part: slice) -> None:
    spool = spool_of(items)
    assert spool == items
    assert (len(spool), list(spool), list(reversed(spool))) == (len(items), items, items[::-1])
    assert spool[part] == items[part]
    assert [spool[-n] for n in range(1, len(items) + 1)] == items[::-1]
    with pytest.raises(IndexError):
        spool[len(items)]


def test_what_is_written_after_reading_harms_nothing() -> None:
    spool = spool_of(["a" * 9, "b"])
    assert spool[0] == "a" * 9
    spool.append("c")
    assert spool == ["a" * 9, "b", "c"]
    assert spool != ["a" * 9, "b", "d"]
    assert spool != ["a" * 9, "b"]


@pytest.mark.parametrize("in_memory", [1, 2**20])
def test_small_ones_and_large_ones_are_pickled_with_what_they_hold(
    in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", in_memory)
    spool = spool_of(list(range(50)))
    again = pickle.loads(pickle.dumps(spool))
    again.append(50)
    assert again == list(range(51))
    assert spool == list(range(50))


def test_the_lines_of_a_file_stay_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('"é"\n2\n')
    spool: Spool[Any] = Spool.of_lines(path, encode, json.loads)
    assert pickle.loads(pickle.dumps(spool)) == ["é", 2]
    (tmp_path / "new").write_text('"another one that is longer"\n')
    (tmp_path / "new").replace(path)
    assert spool == ["é", 2]


def test_some_items_are_chosen_and_taken_to_a_spool_of_their_own() -> None:
    spool = spool_of(list("abcde"))
    assert Chosen(spool, [4, 0, 0]) == ["e", "a", "a"]
    assert where(spool, lambda item: item > "b") == ["c", "d", "e"]
    taken = spool.taken([1, 3])
    del spool
    assert taken == ["b", "d"]
