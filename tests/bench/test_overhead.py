"""The overhead benchmark's measuring, on stand-ins whose difference is known."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median

import pytest

from bench import overhead
from bench.client import LoadClient, LoadError
from bench.harness import Report
from bench.overhead import Block, Pair, Plan
from bench.servers import Launch, ServerError, free_port, process_cpu_s, running, session_processes

STAND_IN = Path(__file__).with_name("stand_in.py")
PLAN = Plan({1: 4, 4: 12}, pairs=4, quick_pairs=1, pause_s=0.05, max_tokens=4)


def stand_in(label: str, *arguments: str, extra_cpu_ms: float = 0) -> Launch:
    port = free_port()
    command = [sys.executable, str(STAND_IN), str(port), str(extra_cpu_ms), *arguments]
    return Launch(label, command, dict(os.environ), port)


@pytest.fixture(autouse=True)
def results_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "RESULTS", tmp_path)


def pairs_of(throughput: float = 1.0, ttft: float = 1.0, extra_cpu_ms: float = 0.0) -> list[Pair]:
    bare = Block(requests_per_s=10, ttft_ms=100, api_cpu_ms=5, idle_share=0)
    ours = Block(10 * throughput, 100 * ttft, 5 + extra_cpu_ms, 0)
    return [Pair(concurrency, bare, ours) for concurrency in (1, 8) for _ in range(4)]


def test_a_server_against_its_equal_is_found_equal() -> None:
    pairs = overhead.measure([stand_in("a"), stand_in("b")], PLAN)
    report = Report("x")
    overhead.note(report, "stand-in", pairs)

    assert len(pairs) == 8
    assert median(pair.throughput_ratio for pair in pairs) == pytest.approx(1.0, abs=0.15)
    assert [row["at once"] for row in report.measurements] == [1, 4]


def test_more_cpu_time_a_request_is_measured_as_that_much() -> None:
    pairs = overhead.measure([stand_in("a"), stand_in("b", extra_cpu_ms=5)], PLAN)

    assert median(pair.extra_cpu_ms for pair in pairs) == pytest.approx(5, abs=1)
    assert all(pair.bare.idle_share < 0.1 for pair in pairs)


def test_a_later_first_token_is_seen() -> None:
    pairs = overhead.measure([stand_in("a"), stand_in("b", "slow")], replace(PLAN, requests={2: 4}))

    assert median(pair.ttft_ratio for pair in pairs) > 2


def test_unequal_work_is_refused() -> None:
    with pytest.raises(LoadError, match="tokens"):
        overhead.measure([stand_in("a"), stand_in("b")], replace(PLAN, max_tokens=5))


def test_a_refused_request_fails_the_block(tmp_path: Path) -> None:
    with running([stand_in("a")], tmp_path) as (server,), LoadClient() as client:
        body = {"messages": [{"role": "user", "content": "refuse"}]}
        with pytest.raises(LoadError, match="503"):
            client.run(server.port, [body], concurrency=1)


def test_claims_follow_the_pairs() -> None:
    good, bad = Report("good"), Report("bad")
    overhead.claim_ratios(good, pairs_of(0.98, 1.04))
    overhead.claim_cpu(good, pairs_of(extra_cpu_ms=0.2))
    overhead.claim_ratios(bad, pairs_of(0.9, 1.2))
    overhead.claim_cpu(bad, pairs_of(extra_cpu_ms=0.4))

    assert all(claim.holds for claim in good.claims)
    assert not any(claim.holds for claim in bad.claims)


def test_a_server_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="the model's folder is missing"),
        running([stand_in("broken", "fail")], tmp_path),
    ):
        pass


def test_no_server_outlives_its_benchmark_ended_by_sigterm(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from bench.servers import Launch, running\n"
        "port = int(sys.argv[2])\n"
        "launch = Launch('a', [sys.executable, sys.argv[1], str(port), '0'], {}, port)\n"
        "with running([launch], Path(sys.argv[3])) as (server,):\n"
        "    print(server.session, flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(STAND_IN), str(free_port()), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        session = int(benchmark.stdout.readline())
        assert session_processes(session) == [session]
        benchmark.terminate()

    assert benchmark.returncode == 128 + signal.SIGTERM
    assert session_processes(session) == []


def test_cpu_time_is_the_kernels_count() -> None:
    before = process_cpu_s(os.getpid()) - time.process_time()
    sum(range(2_000_000))

    assert process_cpu_s(os.getpid()) - time.process_time() == pytest.approx(before, abs=0.005)
    assert process_cpu_s(2**22 - 1) == 0


def test_no_prompt_comes_twice() -> None:
    prompts = list(islice(overhead.distinct_prompts(), 6000))

    assert len(set(prompts)) == 6000


def test_bare_vllm_gets_the_same_arguments_less_the_address_and_the_plugin() -> None:
    arguments = ["m", "--host", "h", "--lora-target-modules", "a", "b", "--port=1", "--dtype", "x"]

    assert overhead.without_address(arguments) == [
        "m", "--lora-target-modules", "a", "b", "--dtype", "x",
    ]  # fmt: skip
    assert overhead.without_plugin({"VLLM_PLUGINS": "modiste"}) == {"VLLM_PLUGINS": ""}
    assert overhead.without_plugin({"VLLM_PLUGINS": "mine,modiste"}) == {"VLLM_PLUGINS": "mine"}
