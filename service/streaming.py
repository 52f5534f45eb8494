"""A streamed chat's events, of which vLLM writes the first and the last.

From one to the next of those between, nothing but the text differs. vLLM builds and validates three
models for each; here the text takes the place that it has in vLLM's own first event. All events
that one output of the engine makes go out together: a role goes with the first text, usage and the
end with the last.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json

ERROR = 'data: {"error":'
"""How vLLM begins an event that tells one."""

Events = AsyncGenerator[str, None]


def is_plain(handler: Any, request: Any) -> bool:
    """Whether events of a chat differ in their text alone, of the first one with text on.

    Args:
        handler: vLLM's `OpenAIServingChat`.
        request: its `ChatCompletionRequest`.
    """
    options = request.stream_options
    return (
        (request.n or 1) == 1
        and not request.logprobs
        and not request.return_token_ids
        and not request.echo
        and not (options is not None and options.continuous_usage_stats)
        and handler.parser_cls is None  # of tools or reasoning
        and not handler.enable_force_include_usage
        and not handler.enable_log_outputs
    )


def shorten(handler: Any) -> None:
    """Let a chat handler of vLLM's stream plain chats so."""
    original: Callable[..., Events] = handler.chat_completion_stream_generator

    def events(request: Any, outputs: AsyncGenerator[Any, None], *args: Any, **more: Any) -> Events:
        if not is_plain(handler, request):
            return original(request, outputs, *args, **more)
        read = _Outputs(outputs)
        return _events(original(request, read, *args, **more), read)

    handler.chat_completion_stream_generator = events


class _Outputs:
    """The engine's outputs as vLLM gets them: without those whose events are made here."""

    def __init__(self, outputs: AsyncGenerator[Any, None]) -> None:
        self.all = outputs
        self.text = ""
        """Of the one that vLLM got last."""
        self.left_out: list[int] = []
        """Tokens of those that it did not get, to be counted with the next."""
        self.next: Any = None
        """What it gets next: an output that was read already, or what reading raised."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        output, self.next = self.next, None
        if isinstance(output, Exception):
            raise output
        if output is None:
            output = await anext(self.all)
        if output.outputs:
            choice = output.outputs[0]
            self.text = choice.text
            if self.left_out:
                choice.token_ids = [*self.left_out, *choice.token_ids]
                self.left_out = []
        return output


async def _events(vllms: Events, outputs: _Outputs) -> Events:
    async with aclosing(outputs.all), aclosing(vllms):
        held, around = "", None
        async for event in vllms:
            if event.startswith(ERROR):
                if held:
                    yield held
                yield event
                held = ""
                continue
            held += event
            if around is not None or (around := _around(event, outputs.text)) is None:
                continue
            yield held
            held = ""
            before, after = around
            try:
                async for output in outputs.all:
                    if _ends(output):
                        outputs.next = output
                        break
                    choice = output.outputs[0]
                    outputs.left_out.extend(choice.token_ids)
                    yield f"{before}{to_json(choice.text).decode()}{after}"
            except Exception as error:  # noqa: BLE001 - vLLM tells it
                outputs.next = error
        if held:
            yield held


def _around(event: str, text: str) -> tuple[str, str] | None:
    """What stands before and after the text in an event; None where that is not sure."""
    before, place, after = event.partition(f'"content":{to_json(text).decode()}')
    if not text or not place:
        return None
    return f'{before}"content":', after


def _ends(output: Any) -> bool:
    """Whether vLLM has to see it."""
    return (
        output.finished or len(output.outputs) != 1 or output.outputs[0].finish_reason is not None
    )
