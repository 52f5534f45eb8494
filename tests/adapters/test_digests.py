"""A list has one digest, whether it is there whole or passes value by value."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapters.digests import digest_json, digest_json_list

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, max_size=4))
def test_values_that_pass_give_the_digest_of_their_list(some: list[Any]) -> None:
    assert digest_json_list(iter(some)) == digest_json(some)


def test_values_do_not_run_together() -> None:
    assert digest_json_list([1, 2]) != digest_json_list([12])
    assert digest_json_list([]) == digest_json([])
