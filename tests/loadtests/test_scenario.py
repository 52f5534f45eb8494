"""Scenario files."""

from pathlib import Path

import pytest

from loadtests.scenario import ScenarioError, load_scenario, scenario_names, scenario_path


@pytest.mark.parametrize("name", scenario_names())
def test_packaged_scenarios_load(name: str) -> None:
    scenario = load_scenario(scenario_path(name))

    assert (scenario.length_s > 0) is (scenario.replay is None)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match="chat"):
        scenario_path("no_such_scenario")


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("description: x\nmix: {chatt: 1}\nuserz: 3\nslo: {ttft_p96_ms: 1}\n")

    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)

    assert all(word in str(caught.value) for word in ("chatt", "userz", "ttft_p96_ms"))


def test_parts_that_do_not_fit_together_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "description: x\nmix: {classify: 1}\nslo: {}\nprompt_words: [9, 3]\nusers: 2\n"
        "replay: {file: x, format: azure}\n"
    )

    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)

    words = ("one of shape", "duration_s", "prompt_words", "a replay sends")
    assert all(word in str(caught.value) for word in words)


def test_keys_are_changed_by_their_dotted_names(tmp_path: Path) -> None:
    path = scenario_path("chat")

    changed = load_scenario(
        path, ["slo.ttft_p95_ms=7", "shape.rate_per_s=3", "beside.batches.lines=4", "models=[a, b]"]
    )

    assert changed.slo.ttft_p95_ms == 7
    assert changed.stages[0].rate_per_s == 3
    assert changed.beside.batches is not None
    assert changed.models == ("a", "b")
    for wrong in ("slo", "slo.nothing=1", "description.x=1", "max_tokens=: {"):
        with pytest.raises(ScenarioError):
            load_scenario(path, [wrong])


def test_a_steady_rate_takes_the_place_of_any_shape() -> None:
    burst = load_scenario(scenario_path("burst"))
    users = load_scenario(scenario_path("steady_users"))

    for one in (burst, users):
        steady = one.at_rate(7, 30, seed=3)
        assert [(stage.rate_per_s, stage.duration_s) for stage in steady.stages] == [(7, 30)]
        assert (steady.users, steady.seed, steady.slo) == (None, 3, one.slo)


@pytest.mark.parametrize(
    "load",
    [
        "",
        "users: 1",
        "users: 1\nduration_s: 1\narrivals: [{rate_per_s: 1, duration_s: 1}]",
        "duration_s: 3\narrivals: [{rate_per_s: 1, duration_s: 1}]",
        "users: 1\nduration_s: 1\nwarmup_s: 1",
        "users: 1\nduration_s: 1\nprompt_words: [9, 3]",
        "users: 1\nduration_s: 1\nshape: {kind: steady, rate_per_s: 1, duration_s: 1}",
        "shape: {kind: circle, rate_per_s: 1, duration_s: 1}",
        ": {",
    ],
)
def test_a_load_is_open_or_closed_and_longer_than_its_warmup(tmp_path: Path, load: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"description: x\nmix: {{chat: 1}}\nslo: {{}}\n{load}\n")

    with pytest.raises(ScenarioError):
        load_scenario(path)
