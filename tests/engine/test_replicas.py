"""Two real servers on one home folder, one PostgreSQL database, and versions that lie in S3."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from adapters.registry import Registry
from service.models import draw
from tests.adapters.remotes import BUCKET, s3_client, s3_server
from tests.made import Recipe, adapter_folder, add_tiny_base, publish
from tests.postgres import Postgres
from tests.serving import Running, start, stop

NAMES = ("serve-a.log", "serve-b.log")
WITHIN_S = 2.0
SECRET = "hunter2"
CALLERS = [f"caller-{number}" for number in range(8)]
TRIED = next(key for key in CALLERS if draw(("tone", "production"), key) < 50)
"""A caller whom a canary of half of the requests answers."""

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "verysecret"}
STORE = f"s3://{BUCKET}/engine"
WEIGHTS = "adapter_model.safetensors"

Pair = tuple[Running, Running]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Pair]:
    """Both serve `tone`, whose first of two versions is live."""
    home = tmp_path_factory.mktemp("shared")
    with s3_server() as s3, pytest.MonkeyPatch.context() as patch:
        s3_client(s3).create_bucket(Bucket=BUCKET)
        for name, value in {"AWS_ENDPOINT_URL": s3, **KEYS}.items():
            patch.setenv(name, value)
        yield from _started(home, postgres)


def _started(home: Path, postgres: Postgres) -> Iterator[Pair]:
    address = postgres.ready().replace("postgres:@", f"postgres:{SECRET}@")  # nobody asks for it
    (home / "modiste.yaml").write_text(
        f"database_url: {address}\nstore_url: {STORE}\nkv_cache_gib: 1\n"
    )
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    for seed in (50, 51):
        publish(registry, base, Recipe("tone", seed=seed))
    registry.promote("tone@1")
    with ThreadPoolExecutor(2) as pool:
        starts = [pool.submit(start, home, log_name=name) for name in NAMES]
    running = []
    try:
        for name, begun in zip(NAMES, starts, strict=True):
            process, url = begun.result()
            running.append(Running(registry, base, url, home / name, process))
        yield running[0], running[1]
    finally:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(stop, [server.process for server in running]))


def ask(client: httpx.Client, model: str = "tone", key: str = "") -> tuple[str, str]:
    """The version that answered, and its text."""
    answer = client.post(
        "/v1/chat/completions",
        headers={"x-modiste-sticky-key": key} if key else {},
        json={
            "model": model, "max_tokens": 8, "temperature": 0,
            "messages": [{"role": "user", "content": "save the file"}],
        },
    )  # fmt: skip
    answer.raise_for_status()
    body = answer.json()
    return body["model"], body["choices"][0]["message"]["content"]


def told(client: httpx.Client, action: str, **body: object) -> httpx.Response:
    return client.post(f"/v1/adapters/tone/{action}", json=body)


def seconds_until(client: httpx.Client, reference: str, key: str = "") -> float:
    started = time.monotonic()
    while ask(client, key=key)[0] != reference:
        assert time.monotonic() - started < 30
        time.sleep(0.02)
    return time.monotonic() - started


def spoiled(server: Running, seed: int) -> str:
    """A version whose weights are not those that its probe was recorded with."""
    folder = server.registry.home.root / "made" / f"bad-{seed}"
    draft = adapter_folder(server.base, Recipe("tone", seed=seed), folder)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k: v * 1.5 if "lora_B" in k else v for k, v in tensors.items()}, weights)
    return server.registry.publish(folder, draft).reference


def test_what_one_server_is_told_the_other_does_within_two_seconds(pair: Pair) -> None:
    with pair[0].client() as one, pair[1].client() as other:
        assert ask(one) == ask(other)
        assert told(one, "promote", version=2).status_code == 200
        promoted = seconds_until(other, "tone@2")
        assert ask(one) == ask(other)

        assert told(other, "rollback").status_code == 200
        rolled_back = seconds_until(one, "tone@1")

        assert told(one, "canary", version=2, percent=50).status_code == 200
        tried = seconds_until(other, "tone@2", TRIED)
        for key in CALLERS:
            assert ask(one, key=key) == ask(other, key=key)

        assert told(other, "canary/end", promote=False).status_code == 200
        ended = seconds_until(one, "tone@1", TRIED)

    times = {"promoted": promoted, "rolled back": rolled_back, "tried": tried, "ended": ended}
    for what, seconds in times.items():
        print(f"{what}: {seconds:.2f} s")
    assert max(times.values()) < WITHIN_S


def test_a_version_that_fails_its_proof_on_one_takes_effect_on_none(pair: Pair) -> None:
    bad = spoiled(pair[0], 52)
    with pair[0].client() as one, pair[1].client() as other:
        refused = told(one, "promote", version=int(bad.split("@")[1]))
        assert refused.json()["error"]["code"] == "proof_failed"
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert ask(other)[0] == ask(one)[0] == "tone@1"
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            ask(other, bad)

    assert pair[0].registry.find(bad).state == "quarantined"
    assert pair[0].registry.aliases("tone") == {"production": 1}


def test_an_alias_that_moved_to_a_bad_version_stays_where_it_was_on_both(pair: Pair) -> None:
    bad = spoiled(pair[0], 53)
    pair[0].registry.promote(bad)  # nobody proved it yet
    try:
        for server in pair:
            with server.client() as client:
                until = time.monotonic() + 30
                while not served_not(client, bad):
                    assert time.monotonic() < until
                    time.sleep(0.1)
                assert ask(client)[0] == "tone@1"
    finally:
        pair[0].registry.promote("tone@1")


def served_not(client: httpx.Client, reference: str) -> bool:
    number = int(reference.split("@")[1])
    shown = client.get("/v1/adapters/tone").json()
    [version] = [v for v in shown["versions"] if v["version"] == number]
    return version["state"] == "quarantined" and shown["served"] == {"production": 1}


def test_while_the_database_is_away_both_go_on_answering_and_follow_it_when_it_is_back(
    pair: Pair, postgres: Postgres
) -> None:
    with pair[0].client() as one, pair[1].client() as other:
        seconds_until(one, "tone@1")
        postgres.kill()
        try:
            for client in (one, other):
                assert ask(client)[0] == "tone@1"
                refused = told(client, "promote", version=2)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "store_failed"
                assert client.get("/health/live").status_code == 200
            time.sleep(1)
        finally:
            postgres.start()
        assert told(one, "promote", version=2).status_code == 200
        back = seconds_until(other, "tone@2")
        print(f"after the database was back: {back:.2f} s")

    assert back < WITHIN_S
    for server in pair:
        log = server.log.read_text()
        assert log.count("aliases can't be read") == log.count("aliases can be read again") == 1


def test_a_server_serves_what_it_has_to_fetch_and_goes_on_without_the_store(pair: Pair) -> None:
    registry, base = pair[0].registry, pair[0].base
    for seed in (61, 62):
        publish(registry, base, Recipe("far", seed=seed))
    folders = [version.folder for version in registry.versions("far")]
    for folder in folders:
        shutil.rmtree(folder)
    with pair[0].client() as client:
        first = ask(client, "far@1")
        assert first[0] == "far@1"
        assert (folders[0] / WEIGHTS).is_file()
        assert not (folders[1] / WEIGHTS).exists()
        assert ask(client, "far@2")[0] == "far@2"
        store = s3_client(os.environ["AWS_ENDPOINT_URL"])
        store.delete_object(Bucket=BUCKET, Key=f"engine/far/{folders[0].name}/{WEIGHTS}")
        assert ask(client, "far@1") == first


def test_secrets_are_in_no_log_and_no_list_of_processes(pair: Pair) -> None:
    for server in pair:
        parent = psutil.Process(server.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        assert len(processes) > 1  # the engine's too
        for secret in (SECRET, KEYS["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in str([process.cmdline() for process in processes])
            assert secret not in server.log.read_text()
