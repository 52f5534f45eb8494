"""A cluster on this machine: two servers behind HAProxy, a worker, PostgreSQL and an S3 server.

What the tests measure is printed and, once all of them ran, written as a benchmark's result.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from adapters.registry import Registry
from bench.harness import Claim, Report
from service.keys import Keys
from service.limiting.limits import Limits
from service.scopes import ALL
from tests.adapters.remotes import BUCKET, Proxy, s3_client, s3_server
from tests.cluster.balancer import MISSING, balancing, find_haproxy
from tests.cluster.parts import Cluster, Member, Worker
from tests.made import Recipe, add_tiny_base, publish
from tests.postgres import Postgres

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
PARTS = 6


class Figures:
    """Claims of the tests; each fails its test where it does not hold."""

    def __init__(self) -> None:
        self.report = Report("cluster")
        self.parts: set[str] = set()

    def add(self, part: str, *claims: Claim, **measured: object) -> None:
        for claim in claims:
            self.report.add(claim)
        if measured:
            self.report.measurements.append({"part": part, **measured})
            print({"part": part, **measured})
        self.parts.add(part)
        assert [claim.line() for claim in claims if not claim.holds] == []


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    collected = Figures()
    yield collected
    if len(collected.parts) == PARTS:  # not where only some of the tests were asked for
        collected.report.write()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Cluster]:
    """Both serve `tone`, whose first of two versions is live; one more lies in the store alone."""
    program = find_haproxy()
    if program is None:
        pytest.skip(MISSING)
    home = tmp_path_factory.mktemp("cluster")
    members = Member("modiste-1", home), Member("modiste-2", home)
    with (
        s3_server() as address,
        pytest.MonkeyPatch.context() as patch,
        balancing(program, [member.port for member in members], home) as balancer,
    ):
        s3_client(address).create_bucket(Bucket=BUCKET)
        proxy = Proxy((str(urlsplit(address).hostname), int(urlsplit(address).port or 0)))
        proxy.start()
        for name, value in {"AWS_ENDPOINT_URL": proxy.url, **CREDENTIALS}.items():
            patch.setenv(name, value)
        registry = _home(home, postgres)
        keys = Keys(registry.database)
        worker = Worker(home)
        made = Cluster(
            registry, registry.base(), members, worker, balancer, postgres, proxy,
            keys.create("default", limits=Limits(requests_per_minute=10**6))[1],
            keys.create("default", scopes=ALL)[1],
        )  # fmt: skip
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(Member.start, members))
            worker.start()
            yield made
        finally:
            running = [one for one in (*members, worker) if one.process is not None]
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda one: one.stop(), running))
            proxy.stop()


def _home(home: Path, postgres: Postgres) -> Registry:
    settings = {
        "database_url": postgres.ready(), "store_url": f"s3://{BUCKET}/versions",
        "files_url": f"s3://{BUCKET}/files", "kv_cache_gib": 1, "worker_jobs": 0,
    }  # fmt: skip
    (home / "modiste.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    for recipe in (Recipe("tone", seed=50), Recipe("tone", seed=51), Recipe("far", seed=60)):
        publish(registry, base, recipe)
    registry.promote("tone@1")
    return registry
