"""Several servers behind HAProxy, under load: what callers see while parts of it come and go."""

import shutil
import time
from pathlib import Path

import httpx
import openai
import pytest

from adapters.home import Home
from adapters.registry import Registry
from bench.harness import at_least, at_most
from service.backups.making import back_up
from service.backups.restoring import restore
from tests.cluster.conftest import Figures
from tests.cluster.load import Asked, load
from tests.cluster.parts import Cluster, Member
from tests.service.jobs.asking import LINES, create, until
from tests.serving import start, stop

pytestmark = pytest.mark.timeout(900)  # servers start again while others answer

SETTLED = 20
"""Answers before and after something is done to the cluster."""
DOCUMENTED_S = 2.0
"""Within so long a promotion takes effect on each server."""
MOVES = 6
POSTGRES_AWAY_S = 10.0
STORE_AWAY_S = 60.0


def chat(client: httpx.Client, model: str) -> httpx.Response:
    body = {
        "model": model, "max_tokens": 4, "temperature": 0,
        "messages": [{"role": "user", "content": "save"}],
    }  # fmt: skip
    return client.post("/v1/chat/completions", json=body)


def longest_s(asked: list[Asked]) -> float:
    return max(one.ended - one.began for one in asked)


def test_a_rolling_update_under_load_fails_no_request(cluster: Cluster, figures: Figures) -> None:
    codes = []
    with load(cluster.balancer.url, cluster.key, retries=0) as seen:
        for member in cluster.members:
            seen.wait_for_more(SETTLED)
            codes.append(member.stop())
            seen.wait_for_more(SETTLED)  # the other has all of it
            member.start()
            cluster.balancer.wait_for(member.name, "UP")
        seen.wait_for_more(SETTLED)
    figures.add(
        "rolling update",
        at_most("rolling update: requests that failed, without retries of clients",
                len(seen.failed), 0),
        requests=len(seen.asked), failures=seen.failures, longest_s=longest_s(seen.asked),
    )  # fmt: skip
    assert codes == [0, 0]
    assert {one.server for one in seen.asked[-SETTLED:]} == {one.name for one in cluster.members}


def test_a_server_that_is_taken_out_by_hand_gets_nothing_until_it_is_back(
    cluster: Cluster,
) -> None:
    out, other = cluster.members
    with load(cluster.balancer.url, cluster.key, retries=0) as seen:
        seen.wait_for_more(SETTLED)
        assert cluster.balancer.tell(f"set server modiste/{out.name} state drain").strip() == ""
        at = time.monotonic()
        seen.wait_for_more(SETTLED)
        until_ = time.monotonic()
        assert cluster.balancer.tell(f"set server modiste/{out.name} state ready").strip() == ""
        cluster.balancer.wait_for(out.name, "UP")
        seen.wait_for_more(SETTLED)
    drained = [one for one in seen.asked if at < one.began and one.ended < until_]
    assert drained
    assert {one.server for one in drained} == {other.name}
    assert {one.server for one in seen.asked[-SETTLED:]} == {out.name, other.name}
    assert seen.failed == []


def test_a_server_that_is_killed_breaks_its_own_requests_alone_and_retries_hide_it(
    cluster: Cluster, figures: Figures
) -> None:
    killed, other = cluster.members
    url, key = cluster.balancer.url, cluster.key
    with (
        load(url, key, retries=0) as plain,
        load(url, key, retries=2, kinds=(False,)) as retrying,
    ):
        plain.wait_for_more(SETTLED)
        at = time.monotonic()
        killed.kill()
        plain.wait_for_more(SETTLED)
        retrying.wait_for_more(SETTLED)
        killed.start()
        cluster.balancer.wait_for(killed.name, "UP")
        plain.wait_for_more(SETTLED)
    in_flight = [one for one in plain.asked if one.began < at < one.ended]
    strangers = [one for one in plain.failed if one not in in_flight or one.server == other.name]
    figures.add(
        "kill -9",
        at_most("kill -9: requests that failed and were not in flight on that server",
                len(strangers), 0),
        at_most("kill -9: requests that failed of clients that retry", len(retrying.failed), 0),
        at_least("kill -9: requests that it broke", len(plain.failed), 1),
        requests=len(plain.asked) + len(retrying.asked), in_flight=len(in_flight),
        broken=len(plain.failed), longest_s=longest_s(retrying.asked),
    )  # fmt: skip


def test_a_moved_alias_is_the_same_on_both_within_the_documented_time(
    cluster: Cluster, figures: Figures
) -> None:
    moves: list[tuple[float, float, str]] = []
    with load(cluster.balancer.url, cluster.key, retries=0) as seen:
        for move in range(MOVES):
            seen.wait_for_more(SETTLED)
            number, asked = 2 - move % 2, time.monotonic()
            with cluster.client(cluster.members[move % 2].url) as client:
                answer = client.post("/v1/adapters/tone/promote", json={"version": number})
            moves.append((asked, time.monotonic(), f"tone@{number}"))
            assert answer.status_code == 200, answer.text
            time.sleep(DOCUMENTED_S)
            agreed = {answered_by(cluster, member) for member in cluster.members}
            assert agreed == {f"tone@{number}"}
    ends = [asked for asked, _, _ in moves[1:]] + [float("inf")]
    late = [
        one.began - moved
        for (_, moved, version), end in zip(moves, ends, strict=True)
        for one in seen.asked
        if moved <= one.began and one.ended < end and not one.failure and one.version != version
    ]
    figures.add(
        "alias moved",
        at_most("alias moved: longest time after which a request began that the version before "
                "answered", max(late, default=0.0), DOCUMENTED_S, "s"),
        at_most("alias moved: requests that failed", len(seen.failed), 0),
        requests=len(seen.asked), moves=MOVES, answered_by_the_version_before=len(late),
    )  # fmt: skip


def answered_by(cluster: Cluster, member: Member) -> str:
    with cluster.client(member.url) as client:
        return str(chat(client, "tone").json()["model"])


def test_while_postgresql_is_away_requests_are_answered_and_a_job_goes_on(
    cluster: Cluster, figures: Figures
) -> None:
    with openai.OpenAI(base_url=f"{cluster.balancer.url}/v1", api_key=cluster.operator) as client:
        file = client.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
        with load(cluster.balancer.url, cluster.key, retries=0) as seen:
            seen.wait_for_more(SETTLED)
            job = create(client, file.id, suffix="through")
            assert until(client, job.id, "running").status == "running"
            cluster.postgres.kill()
            time.sleep(POSTGRES_AWAY_S)
            cluster.postgres.start()
            seen.wait_for_more(SETTLED)
            done = until(client, job.id)
        jobs = [one for one in client.fine_tuning.jobs.list() if one.status == "succeeded"]
    made = cluster.registry.versions("through")
    results = [version for version in made if version.manifest.checkpoint is None]
    figures.add(
        "PostgreSQL away",
        at_most("PostgreSQL killed, away and back: requests that failed", len(seen.failed), 0),
        at_least("PostgreSQL killed, away and back: jobs that ran then and succeeded",
                 len(jobs), 1),
        requests=len(seen.asked), away_s=POSTGRES_AWAY_S, longest_s=longest_s(seen.asked),
    )  # fmt: skip
    assert done.status == "succeeded", done.error
    assert len(results) == 1


def test_without_its_store_loaded_versions_are_served_and_cold_ones_come_when_it_is_back(
    cluster: Cluster, figures: Figures
) -> None:
    [cold] = cluster.registry.versions("far")
    shutil.rmtree(cold.folder)
    with (
        load(cluster.balancer.url, cluster.key, retries=0) as seen,
        cluster.client(cluster.balancer.url, cluster.key) as client,
    ):
        seen.wait_for_more(SETTLED)
        cluster.s3.away = True
        began = time.monotonic()
        refused = chat(client, cold.reference)
        refused_s = time.monotonic() - began
        upload = client.post(
            "/v1/files", files={"file": ("a.jsonl", LINES)}, data={"purpose": "fine-tune"}
        )
        time.sleep(max(0.0, began + STORE_AWAY_S - time.monotonic()))
        cluster.s3.away = False
        back = time.monotonic()
        answer = chat(client, cold.reference)
        back_s = time.monotonic() - back
        seen.wait_for_more(SETTLED)
    for failed in (refused, upload):
        assert failed.status_code == 503
        assert failed.json()["error"]["code"] == "store_failed"
        assert failed.headers["retry-after"]
    assert answer.json()["model"] == cold.reference
    figures.add(
        "S3 away",
        at_most("S3 away for a minute: requests for loaded versions that failed",
                len(seen.failed), 0),
        at_most("S3 away for a minute: until a cold version is refused", refused_s, 30, "s"),
        at_most("S3 is back: until a cold version answers", back_s, 5, "s"),
        requests=len(seen.asked), longest_s=longest_s(seen.asked),
    )  # fmt: skip


def test_a_backup_that_was_made_under_load_serves_the_same_elsewhere(
    cluster: Cluster, figures: Figures, tmp_path: Path
) -> None:
    """From PostgreSQL and S3 into a home by itself."""
    with load(cluster.balancer.url, cluster.key, retries=0) as seen:
        seen.wait_for_more(SETTLED)
        began = time.monotonic()
        about = back_up(cluster.registry, tmp_path / "backup", tell=print)
        took_s = time.monotonic() - began
        seen.wait_for_more(SETTLED)
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.settings.write_text("kv_cache_gib: 1\nworker_jobs: 0\n")
    _, counts = restore(tmp_path / "backup", home, print)
    restored = Registry.open(home.root)
    versions, wrong = restored.readable()
    whole = [restored.verified(version.reference) for version in versions]

    process, url = start(home.root)
    try:
        with (
            cluster.client(url, cluster.key) as there,
            cluster.client(cluster.balancer.url, cluster.key) as here,
        ):
            answers = [chat(client, "tone").json() for client in (here, there)]
    finally:
        stop(process)
    assert (wrong, about.lost) == ([], [])
    assert counts == about.counts
    assert restored.all_aliases() == cluster.registry.all_aliases()
    assert answers[0]["model"] == answers[1]["model"]
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]
    figures.add(
        "backup",
        at_most("backup under load: requests that failed", len(seen.failed), 0),
        at_least("backup, restored elsewhere: versions that verify", len(whole),
                 counts["versions"]),
        took_s=took_s, **counts,
    )  # fmt: skip
