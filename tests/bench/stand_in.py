"""A server that streams chat at a known pace: `stand_in.py PORT EXTRA_CPU_MS [COMMAND]`.

COMMAND `fail` ends at once with a message; `slow` waits longer before the first token.
"""

import asyncio
import json
import re
import sys
import time

TOKENS = 4


def events() -> list[bytes]:
    chunks = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"delta": {"content": "x"}}]}] * TOKENS
    lines = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": TOKENS}})
    return [*lines, f"data: {usage}\n\ndata: [DONE]\n\n".encode()]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await reader.readuntil(b"\r\n\r\n"):
        if head.startswith(b"GET"):
            body = json.dumps({"data": [{"id": "stand-in"}]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            continue
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]))
        if b"refuse" in body:
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
            continue
        end = time.process_time() + float(sys.argv[2]) / 1000
        while time.process_time() < end:
            pass
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events():
            await asyncio.sleep(0.03 if "slow" in sys.argv else 0.01)
            writer.write(b"%x\r\n" % len(event) + event + b"\r\n")
        writer.write(b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if "fail" in sys.argv:
    sys.exit("the model's folder is missing")
asyncio.run(main())
