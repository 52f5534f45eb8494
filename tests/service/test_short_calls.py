"""Which calls run on the event loop."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from service.short_calls import SHORT, here_if_short, run_short_calls_here


def where(*_: Any, **__: Any) -> int:
    return threading.get_ident()


async def in_thread(*args: Any, **kwargs: Any) -> int:
    return await asyncio.to_thread(where, *args, **kwargs)


LONG = "a" * (SHORT + 1)
CASES: list[tuple[list[Any], dict[str, Any], bool]] = [
    ([{"prompt": "a"}, object()], {}, True),
    ([{"prompt": LONG}, object()], {}, False),
    ([object(), object(), [{"role": "user", "content": "a"}]], {"tools": None}, True),
    ([[{"role": "user", "content": "a"}] * SHORT], {}, False),
    ([[{"content": [{"type": "text", "text": LONG}]}]], {}, False),
    ([[{"content": "a"}]], {"tools": [{"function": {"description": LONG}}]}, False),
    ([[{"content": "a"}]], {"chat_template": LONG}, True),
]


@pytest.mark.parametrize(("args", "kwargs", "short"), CASES)
def test_short_calls_run_where_they_are_made(
    args: list[Any], kwargs: dict[str, Any], short: bool
) -> None:
    async def run() -> int:
        ran: int = await here_if_short(where, in_thread)(*args, **kwargs)
        return ran

    assert (asyncio.run(run()) == threading.get_ident()) is short


def test_an_error_is_for_whoever_waits() -> None:
    async def run() -> None:
        called = here_if_short(int, in_thread)("a")
        with pytest.raises(ValueError, match="invalid literal"):
            await called

    asyncio.run(run())


def test_vllms_renderer_has_what_is_replaced() -> None:
    from vllm.renderers.base import BaseRenderer
    from vllm.renderers.hf import HfRenderer, safe_apply_chat_template

    from service.plugin import short_calls

    renderer = HfRenderer.__new__(HfRenderer)
    calls = short_calls(renderer)
    assert calls == {
        "_tokenize_prompt_async": renderer._tokenize_prompt,
        "_apply_chat_template_async": safe_apply_chat_template,
    }
    # instance attributes, made in these
    assert "_tokenize_prompt_async" in BaseRenderer.__init__.__code__.co_names
    assert "_apply_chat_template_async" in HfRenderer.__init__.__code__.co_names

    held = SimpleNamespace(a=in_thread, b=in_thread)
    run_short_calls_here(held, {"a": where})
    assert held.a is not in_thread
    assert held.b is in_thread
