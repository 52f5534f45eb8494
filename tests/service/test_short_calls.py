"""Which calls run on the event loop."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from service.short_calls import SHORT, ShortHere, is_short, run_short_calls_here


def where(*_: Any, **__: Any) -> int:
    return threading.get_ident()


LONG = "a" * (SHORT + 1)
CASES: list[tuple[Any, bool]] = [
    (partial(where, {"prompt": "a"}, object()), True),
    (partial(where, {"prompt": LONG}, object()), False),
    (partial(where, object(), object(), [{"role": "user", "content": "a"}], tools=None), True),
    (partial(where, [{"role": "user", "content": "a"}] * SHORT), False),
    (partial(where, [{"content": [{"type": "text", "text": LONG}]}]), False),
    (partial(where, [{"content": "a"}], tools=[{"function": {"description": LONG}}]), False),
    (partial(where, [{"content": "a"}], chat_template=LONG), True),
    (where, False),
]


@pytest.mark.parametrize(("call", "short"), CASES)
def test_short_calls_run_where_they_are_submitted(call: Any, short: bool) -> None:
    assert is_short(call) is short
    with ThreadPoolExecutor(1) as pool:
        ran = ShortHere(pool).submit(call).result(5)
    assert (ran == threading.get_ident()) is short


def test_an_error_is_the_futures() -> None:
    with ThreadPoolExecutor(1) as pool:
        future = ShortHere(pool).submit(partial(int, "a"))
    with pytest.raises(ValueError, match="invalid literal"):
        future.result(5)


def test_vllms_executor_goes_on_with_its_own_for_the_rest() -> None:
    from vllm.renderers.base import _SwappableExecutor

    executor = _SwappableExecutor(1)
    run_short_calls_here(SimpleNamespace(_executor=executor))
    assert executor.submit(partial(where, "a")).result(5) == threading.get_ident()
    assert executor.submit(partial(where, LONG)).result(5) != threading.get_ident()
    executor.replace_inner()  # after a template that never ends: what is short goes there too
    assert executor.submit(partial(where, "a")).result(5) != threading.get_ident()
    executor.shutdown()
