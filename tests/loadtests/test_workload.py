"""Prompts and request bodies."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from loadtests.scenario import Kind, Scenario, ScenarioError
from loadtests.workload import Workload, read_passages


def scenario(**changes: Any) -> Scenario:
    table = {"description": "", "users": 1, "duration_s": 1, "mix": {"chat": 1}, "slo": {}}
    return Scenario.model_validate(table | changes)


def test_default_prompts_lie_in_python_and_vary_in_length() -> None:
    lengths = sorted(len(passage.split()) for passage in read_passages("python"))

    assert len(lengths) > 1000
    assert lengths[len(lengths) // 10] * 10 < lengths[-len(lengths) // 10]


def test_prompts_from_a_package_by_name() -> None:
    assert read_passages("package:sklearn/datasets/descr/iris.rst")


def test_prompts_from_files(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("One\npassage.\n\n\n  Another.\n")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "a"}\n"b"\n\n{"text": "c"}\n')

    assert read_passages(str(text)) == ["One passage.", "Another."]
    assert read_passages(str(rows)) == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["", "{", '{"prompt": 3}', "[1]"])
def test_unreadable_prompts_are_bad_input(tmp_path: Path, content: str) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(content)

    with pytest.raises(ScenarioError):
        read_passages(str(rows))


@pytest.mark.parametrize("source", ["missing.txt", "package:no_such_package/x"])
def test_missing_prompts_are_bad_input(source: str) -> None:
    with pytest.raises(ScenarioError):
        read_passages(source)


def test_no_prompt_comes_twice_before_all_came_once(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("\n\n".join(f"passage number {number}" for number in range(50)))
    workload = Workload(scenario(prompts=str(text)), "base")

    prompts = [workload.call("chat").body["messages"][0]["content"] for _ in range(50)]

    assert len(set(prompts)) == 50


def test_the_same_seed_gives_the_same_calls() -> None:
    one, other = (Workload(scenario(), "base") for _ in range(2))

    assert [one.call("chat") for _ in range(20)] == [other.call("chat") for _ in range(20)]


def test_kinds_follow_the_mix() -> None:
    kinds = Workload(scenario(mix={"chat": 3, "classify": 1, "answer": 0}), "base").kinds()

    drawn = [next(kinds) for _ in range(1000)]

    assert 650 < drawn.count("chat") < 850
    assert drawn.count("answer") == 0


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_is_a_json_request_and_streams_only_when_named_so(kind: Kind) -> None:
    call = Workload(scenario(), "base").call(kind)

    assert json.loads(json.dumps(call.body)) == call.body
    assert call.body.get("stream", False) is call.streamed


def test_task_routes_leave_the_model_to_the_server_unless_told() -> None:
    assert "model" not in Workload(scenario(), "base").call("translate").body
    assert Workload(scenario(), "base").call("chat").body["model"] == "base"
    assert Workload(scenario(models=["a@2"]), "base").call("translate").body["model"] == "a@2"


def test_temperature_zero_stays_zero() -> None:
    assert Workload(scenario(temperature=0), "base").call("generate").body["temperature"] == 0
