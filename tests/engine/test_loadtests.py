"""The load generator against a real server: every kind of request, and what goes on beside."""

import json
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.outcomes import read_outcomes
from loadtests.sampling import read_samples
from tests.serving import Running

LOAD = """description: everything
arrivals: [{rate_per_s: 10, duration_s: 3}]
mix: {chat: 1, chat_stream: 2, completion: 1, completion_stream: 1, generate: 1,
  generate_stream: 1, translate: 1, translate_stream: 1, translate_list: 1, answer: 1,
  answer_many: 1, classify: 1, classify_list: 1}
models: {chat_stream: [one], classify: [mood], classify_list: [mood]}
labels: [positive, neutral, negative]
prompt_words: [3, 20]
list_size: 3
max_tokens: 4
seed: 10
beside:
  batches: {lines: 5}
  promotions: {adapter: one, versions: [1, 1], every_s: 1}
  fine_tuning: {model: tiny}
schedule: {late_ms: 2000}
slo: {error_ratio: 0}
"""


def test_a_server_answers_every_kind_of_load_and_what_goes_on_beside(
    server: Running, tmp_path: Path
) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(LOAD)

    code = main(["--host", server.url, "--scenario", str(path), "--out", str(tmp_path)])

    outcomes = read_outcomes(tmp_path / "all_outcomes.jsonl")
    kinds = {outcome.kind for outcome in outcomes}
    assert code == 0, [one for one in outcomes if one.failed] or (tmp_path / "all.log").read_text()
    assert len(kinds) == 13 + 3
    answers = [outcome.answer for outcome in outcomes if outcome.kind.endswith("_stream")]
    assert any(answer.ttft_ms is not None for answer in answers)  # some tokens have no text
    models = {outcome.answer.model for outcome in outcomes if outcome.kind == "chat_stream"}
    assert models == {"one@1"}
    figures = read_samples(tmp_path / "all_samples.jsonl")[-1].values
    assert {"running", "kv_usage", "queue_requests", "cpu_s", "adapter_slots"} <= figures.keys()


REPLAY = """description: one prefix
replay: {file: FILE, format: mooncake, length_scale: 0.125}
mix: {chat_stream: 1}
ignore_eos: true
schedule: {late_ms: 2000}
slo: {error_ratio: 0, cached_ratio: 0.6}
"""


@pytest.mark.slow
def test_a_replayed_prefix_is_one_that_the_server_has_computed(
    server: Running, tmp_path: Path
) -> None:
    # 4 blocks shared and 1 of its own: with 64 tokens a block at least 0.6 are cached
    lengths = {"input_length": 2560, "output_length": 40}
    rows = [
        {"timestamp": number * 200, "hash_ids": [1, 2, 3, 4, 9 + number], **lengths}
        for number in range(20)
    ]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "load.yaml"
    path.write_text(REPLAY.replace("FILE", str(tmp_path / "trace.jsonl")))
    arguments = ["--host", server.url, "--scenario", str(path), "--sample-s", "0.5"]

    code = main([*arguments, "--out", str(tmp_path)])

    answers = [one.answer for one in read_outcomes(tmp_path / "load_outcomes.jsonl")]
    assert code == 0, (tmp_path / "load.json").read_text()
    assert {answer.output_tokens for answer in answers} == {5}
    assert all(answer.input_tokens in range(300, 341) for answer in answers), answers
