"""Figures of /metrics."""

from pathlib import Path

import pytest

from loadtests.sampling import (
    Sample,
    cpu_cores,
    growth,
    queue_time_ms,
    ratio,
    read_metrics,
    read_samples,
    write_samples,
)

PAGE = """# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a, b"} 3.0
vllm:num_requests_running{engine="1",model_name="a, b"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_requests_waiting_by_reason{reason="capacity"} 99.0
modiste_queue_seconds_sum{priority="interactive"} 1.5
modiste_queue_seconds_sum{priority="batch"} 900.0
modiste_queue_seconds_count{priority="interactive"} 6.0
modiste_queue_seconds_bucket{priority="interactive",le="0.1"} 5.0
vllm:lora_requests_info{max_lora="8",running_lora_adapters="a,b",waiting_lora_adapters=""} 1.7e9
vllm:lora_requests_info{max_lora="8",running_lora_adapters="a",waiting_lora_adapters="c"} 1.8e9
process_cpu_seconds_total 12.5
nonsense
vllm:num_requests_waiting nonsense
"""


def test_series_are_added_up_and_what_is_not_asked_is_passed_over() -> None:
    values = read_metrics(PAGE)

    assert values == {
        "running": 5.0, "kv_usage": 0.25, "queue_s": 1.5, "queue_requests": 6.0, "cpu_s": 12.5,
        "adapters_running": 1.0, "adapters_waiting": 1.0, "adapter_slots": 8.0,
    }  # fmt: skip


def test_a_page_of_something_else_has_no_figures() -> None:
    assert read_metrics("<html>not found</html>\nup 1\n") == {}


def test_samples_survive_their_file(tmp_path: Path) -> None:
    samples = [Sample(0.5, {"running": 1.0}), Sample(1.0, {})]

    write_samples(tmp_path / "s.jsonl", samples)

    assert read_samples(tmp_path / "s.jsonl") == samples
    assert read_samples(tmp_path / "none.jsonl") == []


def test_waits_before_and_within_the_engine_add_up() -> None:
    begin = {"queue_s": 1.0, "queue_requests": 10.0, "engine_queue_s": 0.0}
    end = {"queue_s": 3.0, "queue_requests": 20.0, "engine_queue_s": 0.5}
    samples = [
        Sample(0, begin | {"engine_queue_requests": 0.0}),
        Sample(9, end | {"engine_queue_requests": 5.0}),
    ]

    assert queue_time_ms(samples) == pytest.approx(300)
    assert queue_time_ms(samples[:1]) is None


def test_a_server_that_does_not_tell_has_no_figure() -> None:
    samples = [Sample(0, {"cpu_s": 1.0}), Sample(2, {"cpu_s": 2.0})]

    assert growth(samples, "preemptions") is None
    assert ratio(samples, "prefix_hits", "prefix_queries") is None
    assert cpu_cores(samples) == 0.5
    assert cpu_cores(samples[:1]) is None
