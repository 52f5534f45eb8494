"""Prompts and request bodies."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from loadtests.scenario import Kind, Scenario, ScenarioError
from loadtests.workload import Workload, expand_models, read_passages


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


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_is_a_json_request_and_streams_only_when_named_so(kind: Kind) -> None:
    call = Workload(scenario(), "base").call(kind)

    assert json.loads(json.dumps(call.body)) == call.body
    assert call.body.get("stream", False) is call.streamed


def test_task_routes_leave_the_model_to_the_server_unless_told() -> None:
    assert "model" not in Workload(scenario(), "base").call("translate").body
    assert Workload(scenario(), "base").call("chat").body["model"] == "base"
    named = Workload(scenario(mix={"translate": 1}, models=["a@2"]), "base")
    assert named.call("translate").body["model"] == "a@2"


def test_temperature_zero_stays_zero() -> None:
    assert Workload(scenario(temperature=0), "base").call("generate").body["temperature"] == 0


def test_models_are_names_numbers_and_patterns_of_what_the_server_lists() -> None:
    listed = ["base", "menus", "menus-2", "news"]

    assert expand_models(["a{1..3}x", "menus*", "b"], listed) == [
        "a1x", "a2x", "a3x", "menus", "menus-2", "b",
    ]  # fmt: skip
    with pytest.raises(ScenarioError, match="sport"):
        expand_models(["sport*"], listed)


def test_a_few_models_are_asked_often_and_most_rarely() -> None:
    workload = Workload(scenario(models=["m{1..50}"], zipf=1.0), "base")

    asked = [workload.call("chat").body["model"] for _ in range(2000)]

    # of 50 with 1/r, the first has 22 % and the tenth 2.2 %
    assert 350 < asked.count("m1") < 550
    assert 15 < asked.count("m10") < 90
    assert len(set(asked)) > 40


def test_each_kind_may_have_models_of_its_own() -> None:
    made = scenario(mix={"chat": 1, "translate": 1, "answer": 1}, models={"translate": ["enfr"]})
    workload = Workload(made, "base")

    assert workload.call("translate").body["model"] == "enfr"
    assert workload.call("chat").body["model"] == "base"
    assert "model" not in workload.call("answer").body


def test_lists_have_as_many_texts_as_the_scenario_says() -> None:
    workload = Workload(scenario(list_size=5), "base")

    translate = workload.call("translate_list").body["text"]
    answer = workload.call("answer_many").body

    assert len(set(translate)) == 5
    assert len(answer["question"]) == 5
    assert isinstance(answer["context"], str)


def test_workers_with_one_seed_ask_different_things() -> None:
    one, other = (Workload(scenario(), "base", worker=worker) for worker in (0, 1))

    assert [one.passage() for _ in range(9)] != [other.passage() for _ in range(9)]


def test_lengths_are_kept_where_the_scenario_says_so() -> None:
    workload = Workload(scenario(ignore_eos=True), "base")

    call = workload.call("chat_stream", "a b", max_tokens=7)

    assert call.body["messages"][0]["content"] == "a b"
    assert (call.body["max_tokens"], call.body["ignore_eos"]) == (7, True)
    assert "ignore_eos" not in workload.call("generate").body
