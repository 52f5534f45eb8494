"""What is hung into vLLM's objects."""

import asyncio
import threading
from types import SimpleNamespace

from service.plugin import _before_shutdown, _meter_handlers, our_routes


def test_the_end_of_the_engine_is_told_in_the_event_loop_before_it_drains() -> None:
    told: list[tuple[str, int]] = []

    class Client:
        def shutdown(self, timeout: float) -> None:
            told.append((f"drained within {timeout:g}", threading.get_ident()))

    client = Client()

    async def serve() -> int:
        _before_shutdown(client, lambda: told.append(("told", threading.get_ident())))
        await asyncio.to_thread(client.shutdown, timeout=3.0)
        await asyncio.sleep(0)
        return threading.get_ident()

    loop_thread = asyncio.run(serve())
    assert {words for words, _ in told} == {"told", "drained within 3"}
    assert dict(told)["told"] == loop_thread
    client.shutdown(timeout=0.0)  # once more, as when the client is collected
    assert told[-1][0] == "drained within 0"


def test_every_handler_of_vllms_that_we_call_counts_its_tokens() -> None:
    names = ("chat", "completion", "responses")
    state = SimpleNamespace(
        **{f"openai_serving_{name}": SimpleNamespace(engine_client=None) for name in names}
    )
    client = object()
    _meter_handlers(state, client)  # type: ignore[arg-type]
    assert all(handler.engine_client is client for handler in vars(state).values())


def test_no_path_and_method_is_served_twice() -> None:
    served = [(method, route.path) for route in our_routes() for method in route.methods]
    assert len(served) == len(set(served))
    assert {("POST", "/v1/responses"), ("GET", "/v1/usage")} <= set(served)
