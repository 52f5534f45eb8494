"""Every part of the server knows of its end before the engine drains."""

import asyncio
import threading

from service.ending import Ending, before_shutdown


class Client:
    """An engine's client that notes what was told before it drained."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.told: list[tuple[str, int]] = []

    def shutdown(self, timeout: float) -> None:
        begun = self.ending is not None and self.ending.begun
        self.told.append((f"begun {begun}, drained within {timeout:g}", threading.get_ident()))


def test_the_end_begins_before_the_engine_drains_and_is_told_in_the_event_loop() -> None:
    client = Client()

    async def serve() -> int:
        client.ending = Ending()
        tell = lambda: client.told.append(("told", threading.get_ident()))  # noqa: E731
        before_shutdown(client, client.ending, [tell])
        await asyncio.to_thread(client.shutdown, timeout=3.0)
        await client.ending.wait()
        await asyncio.sleep(0)
        return threading.get_ident()

    loop_thread = asyncio.run(serve())
    assert {words for words, _ in client.told} == {"told", "begun True, drained within 3"}
    assert dict(client.told)["told"] == loop_thread
    client.shutdown(timeout=0.0)  # once more, as when the client is collected
    assert client.told[-1][0] == "begun True, drained within 0"
