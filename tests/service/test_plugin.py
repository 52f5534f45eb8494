"""What is hung into vLLM's objects."""

from types import SimpleNamespace

from service.plugin import _meter_handlers, our_routes


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
