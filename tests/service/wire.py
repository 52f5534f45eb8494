"""A connection to a server of its own, as the tests of HTTP talk to it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from service.protocol import Connections, protocol
from service.settings import Settings

SETTINGS = Settings(max_url_bytes=500, max_header_bytes=2000, header_wait_s=0.3)
HELLO = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n"


class App:
    """Reads the body and answers with its length."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.asked += 1
        size, more = 0, scope["path"] != "/early"
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"%d" % size
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


def talk(
    work: Talk, app: App | None = None, settings: Settings = SETTINGS,
    refused: list[str] | None = None,
) -> Any:  # fmt: skip
    """One connection to a server of its own; `refused` gets the codes that it counts."""

    async def main() -> Any:
        counted = Connections(refused=[] if refused is None else [refused.append])
        config = uvicorn.Config(
            app or App(), http=protocol(settings, counted), lifespan="off", log_level="error"
        )
        server = uvicorn.Server(config)
        config.load()
        listening = await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(config=config, server_state=server.server_state,
                                               app_state={}),
            "127.0.0.1", 0,
        )  # fmt: skip
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(10):
                    found = await work(reader, writer)
            finally:
                writer.close()
            async with asyncio.timeout(3):  # nothing is kept of it
                while server.server_state.connections or server.server_state.tasks:  # noqa: ASYNC110 - uvicorn's sets
                    await asyncio.sleep(0.01)
            return found

    return asyncio.run(main())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)
