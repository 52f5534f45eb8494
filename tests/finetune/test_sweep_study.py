"""What is proposed, pruned and asked again, with Optuna's own study in SQLite."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from finetune import sweep_study
from finetune.sweep_space import Choices, Range, Space
from finetune.sweep_study import LEAST_FINISHED, LOST_ATTEMPTS, Proposal, Pruner, Result, Study

RATES = Space({"rate": Range(0.001, 0.1, log=True), "r": Range(1, 8, whole=True)})
GRID = Space({"r": Choices(("4", "8", "16")), "alpha": Choices(("1", "2"))})


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """Open a study, the same one each time, as a new process would."""

    def make(space: Space, own: dict[str, Any] | None = None, file: str = "trials.db") -> Study:
        found = Study(tmp_path / file, space, 3, own, lower=False)
        found.requeue()
        return found

    return make


def finish(study: Study, proposal: Proposal) -> None:
    value = random.Random(str(proposal.settings)).random()
    study.tell(proposal, Result("finished", value, value, value), "run", 1.0)


def proposed(study: Study) -> Proposal:
    found = study.propose()
    assert found is not None
    return found


def test_a_study_killed_in_between_proposes_what_one_that_was_not_does(
    study: Callable[..., Study],
) -> None:
    whole = study(RATES, file="whole.db")
    for _ in range(12):  # beyond those that are drawn at random
        finish(whole, proposed(whole))
    for number in range(12):
        again = study(RATES)
        killed = proposed(again)
        if number % 3 == 0:
            killed.spend(7.0)
            again = study(RATES)
            asked_again = proposed(again)
            assert asked_again.settings == killed.settings
            assert asked_again.spent == 7.0
            killed = asked_again
        finish(again, killed)

    assert [t.settings for t in study(RATES).trials()] == [t.settings for t in whole.trials()]
    assert [t.number for t in whole.trials()] == list(range(1, 13))


def test_a_trial_whose_process_is_killed_each_time_is_given_up(
    study: Callable[..., Study],
) -> None:
    killed = proposed(study(RATES))
    again = proposed(study(RATES))
    assert again.settings == killed.settings
    again.spend(5.0)  # it left a checkpoint, so the next attempt is a first one again
    again.runs_as("run-1")
    for _ in range(LOST_ATTEMPTS):
        again = proposed(study(RATES))
        assert again.settings == killed.settings
        again.runs_as("run-1")

    after = study(RATES)
    (given_up,) = after.trials()
    assert (given_up.outcome, given_up.settings) == ("failed", killed.settings)
    assert (given_up.run, given_up.minutes) == ("run-1", 5.0 / 60)
    assert "killed 2 times" in given_up.reason
    assert proposed(after).settings != killed.settings


def test_each_combination_of_choices_is_tried_once_the_recipes_own_first(
    study: Callable[..., Study],
) -> None:
    found = study(GRID, {"r": "16", "alpha": "1"})
    while (proposal := found.propose()) is not None:
        finish(found, proposal)

    tried = [tuple(trial.settings.values()) for trial in found.trials()]
    assert tried[0] == (16, 1)
    assert sorted(tried) == [(r, alpha) for r in (4, 8, 16) for alpha in (1, 2)]


def test_a_range_with_nothing_new_left_ends_the_proposals(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_study, "_PATIENCE", 6)
    found = study(Space({"r": Range(1, 2, whole=True)}))
    for _ in range(2):
        finish(found, proposed(found))
    assert found.propose() is None
    assert sorted(trial.settings["r"] for trial in found.trials()) == [1, 2]


def pruned(direction: str, finished: list[dict[int, float]], now: dict[int, float]) -> bool:
    made = optuna.create_study(direction=direction, pruner=Pruner())
    for values in finished:
        made.add_trial(
            optuna.create_trial(value=0.0, intermediate_values=values, params={}, distributions={})
        )
    trial = made.ask()
    for step, value in now.items():
        trial.report(value, step)
    return trial.should_prune()


def test_a_trial_behind_the_median_at_its_share_of_training_is_pruned() -> None:
    others = [{300: value, 600: value / 2, 1000: value / 2} for value in (1.0, 2.0, 3.0, 4.0)]

    assert pruned("minimize", others, {500: 2.6})  # the others stand for what they had at 300
    assert not pruned("minimize", others, {500: 2.4})
    assert pruned("minimize", others, {700: 1.3})
    assert not pruned("minimize", others, {300: 1.0, 700: 9.0})  # it was good once
    assert pruned("maximize", others, {500: 2.4})
    assert not pruned("maximize", others, {500: 2.6})


def test_nothing_is_pruned_too_early() -> None:
    others = [{100: 1.0, 500: 1.0}] * LEAST_FINISHED

    assert pruned("minimize", others, {500: 9.0})
    assert not pruned("minimize", others, {100: 9.0})  # in the first quarter
    assert not pruned("minimize", others, {1000: 9.0})  # it is trained already
    assert not pruned("minimize", others[1:], {500: 9.0})
