"""What fits into the model's window, and long text in windows that overlap."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from service.errors import BadRequest

if TYPE_CHECKING:
    from service.engine import Engine

OVERLAP = 0.25
_WORD = 32  # characters: how far a window's edge moves to find white space


class _OffsetTokenizer(Protocol):
    def __call__(self, text: str, **options: Any) -> Any: ...


async def token_starts(engine: "Engine", text: str) -> list[int]:
    """Character offsets at which the text's tokens begin, [T], in order."""
    tokenizer = cast("_OffsetTokenizer", engine.renderer.tokenizer)

    def read() -> list[int]:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [start for start, _ in encoded["offset_mapping"]]

    return await asyncio.to_thread(read)


def room(engine: "Engine", prompt_ids: Sequence[int], wanted: int, param: str) -> int:
    """How many tokens may be written after a prompt: `wanted`, or what the window has left.

    Raises:
        BadRequest: the prompt leaves no room at all.
    """
    left = engine.max_model_len - len(prompt_ids)
    if left < 1:
        raise BadRequest(
            f"{param} makes a prompt of {len(prompt_ids)} tokens; the model's window is "
            f"{engine.max_model_len} tokens and must hold the answer too",
            param=param,
            hint="shorten it",
            code="context_length_exceeded",
        )
    return min(wanted, left)


def walk(text: str, starts: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Windows of about `size` tokens as character spans, each over a quarter of the next.

    Together they cover the text. Edges move back to white space where it is near, so a
    window can be up to 32 characters longer than `size` tokens. `starts` are the
    offsets at which tokens begin.
    """
    if len(starts) <= size:
        return [(0, len(text))]
    step = max(1, size - int(size * OVERLAP))
    spans: list[tuple[int, int]] = []
    for first in range(0, len(starts), step):
        begin = _snap(text, starts[first]) if first else 0
        if first + size >= len(starts):
            spans.append((begin, len(text)))
            break
        # Snapping keeps order, so the next window begins at or before this end.
        spans.append((begin, _snap(text, starts[first + size])))
    return spans


def _snap(text: str, position: int) -> int:
    for place in range(position, max(0, position - _WORD), -1):
        if text[place - 1].isspace():
            return place
    return position
