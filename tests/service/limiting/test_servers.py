"""Limits over two real servers, asked over HTTP."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import httpx
import pytest

from service.keys import Keys
from tests.service.batches.asked import processes

REQUESTS, LIMIT = 1000, 100


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_of_1000_requests_to_two_servers_exactly_100_pass(tmp_path: Path) -> None:
    with processes(tmp_path, 2) as (registry, key, servers):
        keys = Keys(registry.database)
        (made,) = keys.all("ours")
        keys.limit(made.id, {"requests_per_minute": LIMIT, "concurrent": 50})
        headers = {"authorization": f"Bearer {key}"}
        clients = [
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=headers, timeout=60)
            for server in servers
        ]
        for client in clients:  # each has heard of the limit
            while "x-ratelimit-limit-requests" not in client.get("/v1/batches").headers:
                pass
        spent = LIMIT - int(clients[0].get("/v1/batches").headers["x-ratelimit-remaining-requests"])

        def ask(client: httpx.Client) -> int:
            return client.post("/v1/generate", json={"prompt": "say a"}).status_code

        some = cycle(clients)
        with ThreadPoolExecutor(16) as threads:
            statuses = Counter(threads.map(lambda _: ask(next(some)), range(REQUESTS)))
        assert statuses == {200: LIMIT - spent, 429: REQUESTS - LIMIT + spent}
        assert {client.get("/v1/batches").status_code for client in clients} == {429}
