"""What a real server tells of itself: metrics, lines of the log, traces, alerts; and no secret."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from adapters.registry import Registry
from bench.servers import free_port
from service.keys import Keys
from tests.helm.queries import ALERTS, named, queries
from tests.made import Recipe, add_tiny_base, publish
from tests.otlp import Collector, collecting
from tests.postgres import Postgres
from tests.serving import Running, start, stop

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WAIT_S = 90
STATIC_KEY = "a-static-key-of-the-operator"
WRONG_KEY = "sk-modiste-WrongWrongWrongWrongWrongWrong12"
STORE_SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"


def chat(model: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": 5, "ignore_eos": True, **more}


def series_of(text: str) -> set[str]:
    """All names that the page of metrics has or will have once something happens."""
    ends = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    return {
        family.name + end
        for family in text_string_to_metric_families(text)
        for end in ends.get(family.type, ("",))
    }


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the series that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_alerts_and_dashboard_name_what_a_server_exports(server: Running) -> None:
    there = series_of(server.client().get("/metrics").text) | {"up"}
    asked = {metric for query in queries().values() for metric in named(query).metrics}

    assert asked - there == set()


def test_a_request_is_measured_by_its_version(server: Running) -> None:
    labels = {"route": CHAT, "adapter": "one", "version": "1"}
    with server.client() as client:
        before = client.get("/metrics").text
        began = time.monotonic()
        for stream in (False, True):
            answer = client.post(CHAT, json=chat("one", max_tokens=20, stream=stream))
            assert answer.status_code == 200, answer.text
        took = time.monotonic() - began
        after = client.get("/metrics").text

    def grown(name: str, **more: str) -> float:
        return value(after, name, **labels, **more) - value(before, name, **labels, **more)

    assert grown("modiste_requests_total", status="200") == 2
    assert grown("modiste_tokens_total", direction="out") == 40
    assert grown("modiste_time_between_tokens_seconds_count") == 2
    first, whole = (
        grown(f"modiste_{name}_seconds_sum") for name in ("time_to_first_token", "request")
    )
    between = grown("modiste_time_between_tokens_seconds_sum")
    # both ways of answering have their first token well before their last
    assert 0 < first < 0.7 * whole < took
    assert 19 * between == pytest.approx(whole - first, rel=0.5)


def test_a_server_says_how_it_stands(server: Running) -> None:
    text = server.client().get("/metrics").text

    assert value(text, "modiste_ready") == 1
    assert value(text, "modiste_engine_up") == 1
    assert value(text, "modiste_database_up") == 1
    assert value(text, "modiste_build_info", base="tiny") == 1
    assert value(text, "modiste_disk_free_bytes") > 0
    assert 0 < value(text, "modiste_resident_versions") <= value(text, "modiste_version_places")
    assert "vllm:kv_cache_usage_perc" in text


@dataclass
class Watched:
    """A server that tells all it can, to a collector and a log."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    key: str
    collector: Collector
    postgres: Postgres
    database_password: str

    def client(self, **headers: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} | headers
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def lines(self) -> list[dict[str, Any]]:
        """Those that are objects."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def line_of(self, request: str) -> dict[str, Any]:
        """The line of a request, once it is there."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = [line for line in self.lines() if line.get("request_id") == request]
            if said := [line for line in found if line["logger"] == "modiste.requests"]:
                (line,) = said
                return line
            time.sleep(0.1)
        raise AssertionError(f"no line of {request}")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home, postgres, password = tmp_path_factory.mktemp("home"), Postgres(), "hunter2hunter2hunter2"
    # the server behind it asks for no password, and takes any
    url = re.sub(r"//(\w+)(?::[^@]*)?@", rf"//\1:{password}@", postgres.ready())
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        patch.setenv("MODISTE_DATABASE_URL", url)
        registry = Registry.open(home)
        base = add_tiny_base(registry)
        registry.promote(publish(registry, base, Recipe("one", seed=1)).reference)
        publish(registry, base, Recipe("cold", seed=2))
        _, key = Keys(registry.database).create("default", "test")
        process, address = start(
            home, MODISTE_LOG_FORMAT="json", MODISTE_LOG_LEVEL="debug",
            MODISTE_LOG_REQUEST_TEXT="true", MODISTE_OTLP_ENDPOINT=collector.url,
            MODISTE_API_KEYS=STATIC_KEY, AWS_SECRET_ACCESS_KEY=STORE_SECRET,
            OTEL_BSP_SCHEDULE_DELAY="200",
        )  # fmt: skip
        yield Watched(process, address, home / "serve.log", key, collector, postgres, password)
        stop(process)
        postgres.stop()


@pytest.mark.slow
def test_every_line_of_ours_vllms_and_uvicorns_is_an_object(watched: Watched) -> None:
    lines = watched.lines()

    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert all(re.fullmatch(r"[\d-]{10}T[\d:.]{12}Z", line["time"]) for line in lines)
    processes = {line["process"] for line in lines if line["logger"].startswith("vllm")}
    assert len(processes) >= 2, processes  # of the front end, and of the engine
    assert {"modiste", "vllm", "uvicorn"} <= {line["logger"].split(".")[0] for line in lines}
    others = [line for line in watched.log.read_text().splitlines() if not line.startswith("{")]
    form = re.compile(
        r"\(\w+ pid=\d+\)|\bmodiste\.[a-z]+ |^(DEBUG|INFO|WARNING|ERROR)\b|^Traceback"
    )
    assert [line for line in others if form.search(line)] == []


@pytest.mark.slow
def test_a_requests_line_is_whole(watched: Watched) -> None:
    with watched.client(**{"x-request-id": "line-1"}) as client:
        client.post(CHAT, json=chat("one", "I am bob@example.com"))
    line = watched.line_of("line-1")

    assert (line["route"], line["status"], line["project"]) == (CHAT, 200, "default")
    assert (line["model_asked"], line["model"]) == ("one", "one@1")
    assert (line["completion_tokens"], line["finish_reason"]) == (5, "length")
    assert 0 <= line["queued_ms"] < line["first_token_ms"] < line["total_ms"]
    assert line["caller"].startswith("key_")
    assert line["request"]["messages"] == [{"role": "user", "content": "I am [EMAIL]"}]


@pytest.mark.slow
def test_a_trace_goes_from_the_caller_through_the_engine(watched: Watched) -> None:
    parent = f"00-{TRACE}-{PARENT}-01"
    with watched.client(traceparent=parent, **{"x-request-id": "traced"}) as client:
        assert client.post(CHAT, json=chat("cold@1")).status_code == 200
    (model,) = watched.collector.wait_for("chat cold@1")
    (decode,) = [s for s in watched.collector.wait_for("decode") if s.trace == TRACE]
    spans = {span.id: span for span in watched.collector.spans if span.trace == TRACE}
    way, at = [], decode
    while at.parent in spans:
        way.append(at.name)
        at = spans[at.parent]

    assert way == ["decode", "engine", "chat cold@1"]
    assert (at.name, at.parent) == (f"POST {CHAT}", PARENT)
    names = {span.name: span for span in spans.values()}
    load, resolve = names["load version"], names["resolve model"]
    assert resolve.started <= load.started < load.ended <= resolve.ended
    assert names["queue"].ended <= names["prefill"].ended <= decode.ended <= at.ended
    assert model.attributes["gen_ai.request.model"] == "cold@1"
    assert model.attributes["gen_ai.response.model"] == "cold@1"
    assert model.attributes["gen_ai.usage.output_tokens"] == 5
    assert watched.line_of("traced")["trace_id"] == TRACE
    assert not [span for span in watched.collector.spans if "/health" in span.name]


@pytest.mark.slow
def test_no_secret_is_in_the_log(watched: Watched) -> None:
    secrets = [watched.key, STATIC_KEY, WRONG_KEY, STORE_SECRET, watched.database_password]
    with watched.client() as client:
        client.post(CHAT, json=chat("one", f"my key is {watched.key}, yours {STATIC_KEY}"))
        client.post(CHAT, json=chat(WRONG_KEY))
        client.post(CHAT, json={**chat("one"), "model": {"secret": STORE_SECRET}})
        client.get(f"/v1/files/{WRONG_KEY}")
        client.post(f"/v1/{STATIC_KEY}", json={})
        client.post(CHAT, content=b"{" + watched.key.encode())
    with watched.client(authorization=f"Bearer {WRONG_KEY}") as client:
        assert client.post(CHAT, json=chat("one")).status_code == 401
    with watched.client(
        **{"x-request-id": WRONG_KEY, "x-modiste-sticky-key": STATIC_KEY}
    ) as client:
        client.post(CHAT, json=chat("one"))
    with watched.client(authorization=f"Bearer {STATIC_KEY}", **{"x-request-id": "last"}) as client:
        assert client.post(CHAT, json=chat("one")).status_code == 200
    watched.line_of("last")
    log = watched.log.read_text()

    assert [secret for secret in secrets if secret in log] == []
    assert "[SECRET]" in log  # they were there to be found


def ask(url: str, query: str) -> list[dict[str, Any]]:
    found = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
    assert found["status"] == "success", found
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def until_firing(url: str, alert: str) -> dict[str, str]:
    """The labels of an alert, once it fires."""
    query = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if fired := ask(url, query):
                labels: dict[str, str] = fired[0]["metric"]
                return labels
        time.sleep(0.5)
    raise AssertionError(f"{alert} does not fire")


@pytest.fixture
def prometheus(watched: Watched, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the server, with our rules, which here wait for nothing."""
    rules = deepcopy(ALERTS)
    for rule in rules["groups"][0]["rules"]:
        rule.pop("for", None)
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    target = watched.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "modiste", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
             f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_alerts_fire_in_a_real_prometheus(watched: Watched, prometheus: str) -> None:
    with watched.client() as client:
        client.post(CHAT, json=chat("one"))
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if ask(prometheus, 'modiste_requests_total{adapter="one"}'):
                break
        time.sleep(0.5)
    assert ask(prometheus, "up")[0]["value"][1] == "1"
    assert ask(prometheus, 'ALERTS{severity="critical"}') == []

    watched.postgres.kill()
    try:
        assert until_firing(prometheus, "ModisteDatabaseAway")["severity"] == "critical"
        with watched.client() as client:  # what is loaded goes on answering
            assert client.post(CHAT, json=chat("one")).status_code == 200
    finally:
        watched.postgres.start()
    assert watched.database_password not in watched.log.read_text()
    os.killpg(watched.process.pid, signal.SIGKILL)  # its engine would outlive it
    assert until_firing(prometheus, "ModisteDown")["instance"] in watched.url
