"""Scenario files."""

from pathlib import Path

import pytest

from loadtests.scenario import ScenarioError, load_scenario, scenario_names, scenario_path


@pytest.mark.parametrize("name", scenario_names())
def test_packaged_scenarios_load(name: str) -> None:
    assert load_scenario(scenario_path(name)).length_s > 0


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match="chat"):
        scenario_path("no_such_scenario")


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("description: x\nmix: {chatt: 1}\nuserz: 3\nslo: {ttft_p96_ms: 1}\n")

    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)

    assert all(word in str(caught.value) for word in ("chatt", "userz", "ttft_p96_ms"))


@pytest.mark.parametrize(
    "load",
    [
        "",
        "users: 1",
        "users: 1\nduration_s: 1\narrivals: [{rate_per_s: 1, duration_s: 1}]",
        "duration_s: 3\narrivals: [{rate_per_s: 1, duration_s: 1}]",
        "users: 1\nduration_s: 1\nwarmup_s: 1",
        "users: 1\nduration_s: 1\nprompt_words: [9, 3]",
        ": {",
    ],
)
def test_a_load_is_open_or_closed_and_longer_than_its_warmup(tmp_path: Path, load: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"description: x\nmix: {{chat: 1}}\nslo: {{}}\n{load}\n")

    with pytest.raises(ScenarioError):
        load_scenario(path)
