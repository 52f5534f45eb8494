"""The trials of a sweep: what is proposed, what came of it; kept by Optuna in SQLite.

Optuna's states: a trial that ran to its end is COMPLETE; one that was ended early, or whose
settings failed, is PRUNED, so that the sampler keeps away from them; one that was interrupted is
FAIL, and stands in the queue again with its settings. A process that is killed may be killed by the
settings, as when memory runs out, so attempts that leave no checkpoint are counted.
"""

import json
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from adapters.database_url import sqlite_url
from finetune.sweep_space import Space

FULL = 1000
"""Training is measured in thousandths, since settings may change its number of steps."""
WARM_UP = FULL // 4
"""Nothing is pruned before: high learning rates look bad at first and often win."""
LEAST_FINISHED = 4
"""Trials that must have finished before any is pruned."""
LOST_ATTEMPTS = 2
"""So often in a row a trial's process may be killed before a further checkpoint."""
_RANDOM_TRIALS = 8
"""Before the sampler follows what it has seen."""
_GRID = 10_000
"""Up to so many combinations of choices, each is tried once, in random order."""
_PATIENCE = 50
"""Proposals in a row that were tried before, and there is nothing new to try."""

Outcome = Literal["finished", "pruned", "diverged", "failed"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One of the settings that were tried, and what came of them."""

    number: int
    """Counts from 1 in the order in which they were tried."""
    settings: dict[str, Any]
    outcome: Outcome
    minutes: float
    run: str
    """Name of its folder below HOME/runs."""
    value: float | None = None
    """On validation examples, with its 95 % interval; None unless it finished."""
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a trial's settings."""

    outcome: Outcome
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


class Pruner(optuna.pruners.BasePruner):
    """The median rule at equal shares of training (Golovin et al. 2017, section 3.2.1).

    A trial ends early when its best figure so far is worse than the median of what the finished
    ones had at that point. Optuna's MedianPruner compares equal steps only; where settings change
    the number of steps, there are none, so here a trial stands for what it showed last.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        now = trial.last_step
        if now is None or not WARM_UP <= now < FULL:
            return False
        states = (TrialState.COMPLETE,)
        others = [_last_until(now, t) for t in study.get_trials(deepcopy=False, states=states)]
        known = [value for value in others if value is not None]
        if len(known) < LEAST_FINISHED:
            return False
        seen = trial.intermediate_values.values()
        if study.direction == optuna.study.StudyDirection.MAXIMIZE:
            return max(seen) < statistics.median(known)
        return min(seen) > statistics.median(known)


def _about(result: Result) -> dict[str, Any]:
    """What is kept of a result; its value is Optuna's."""
    return {
        "outcome": result.outcome, "low": result.low, "high": result.high, "reason": result.reason,
    }  # fmt: skip


def _last_until(now: int, trial: FrozenTrial) -> float | None:
    steps = [step for step in trial.intermediate_values if step <= now]
    return trial.intermediate_values[max(steps)] if steps else None


class Study:
    """The trials of one sweep; one process at a time.

    Args:
        file: the database, made when it is not there.
        own: the recipe's own settings, as Optuna keeps them; they are tried first.
    """

    def __init__(
        self, file: Path, space: Space, seed: int, own: dict[str, Any] | None, *, lower: bool
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = sqlite_url(file).render_as_string()
        self._study = optuna.create_study(
            study_name="sweep", storage=url, load_if_exists=True, pruner=Pruner(),
            direction="minimize" if lower else "maximize",
        )  # fmt: skip
        self._space, self._seed, self._own = space, seed, own

    def requeue(self) -> None:
        """Put trials that were interrupted into the queue again, with their settings.

        Those whose process was killed again and again have failed.
        """
        for trial in self._in(TrialState.RUNNING):
            about = trial.user_attrs
            lost = 0 if about.get("kept") else about.get("lost", 0) + 1
            if lost >= LOST_ATTEMPTS and "settings" in about:
                self._give_up(trial)
            elif len(trial.params) == len(self._space.axes):
                known = {"seconds": about.get("seconds", 0.0), "lost": lost}
                self._study.enqueue_trial(trial.params, user_attrs=known)
            # killed before this, it is there twice; the second time it is no news any more
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _give_up(self, trial: FrozenTrial) -> None:
        """Keep a trial as failed whose process ends each time."""
        if trial.params in [tried.params for tried in self._tried()]:
            return
        reason = f"its process was killed {LOST_ATTEMPTS} times in a row and left no checkpoint "
        reason += "between: memory may have run out"
        kept = {"seconds": 0.0, "run": "", **trial.user_attrs}
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions,
                user_attrs=kept | _about(Result("failed", reason=reason)),
            )
        )  # fmt: skip

    def propose(self) -> "Proposal | None":
        """Settings that were not tried yet; None: there are no others."""
        for _ in range(_PATIENCE):
            if not self._in(TrialState.WAITING):
                if self._space.combinations is not None and self._space.combinations <= _GRID:
                    if (untried := self._untried()) is None:
                        return None
                    self._study.enqueue_trial(untried)
                elif not self._study.get_trials(deepcopy=False) and self._own is not None:
                    self._study.enqueue_trial(self._own)
            proposal = self._ask()
            if proposal.settings not in [trial.settings for trial in self.trials()]:
                return proposal
            proposal.trial.set_user_attr("repeated", value=True)
            self._study.tell(proposal.trial, state=TrialState.FAIL)
        return None

    def _ask(self) -> "Proposal":
        # Each proposal has a seed of its own, so that a sweep that goes on in another process
        # neither repeats its first ones nor proposes otherwise than one that was not stopped.
        repeated = [t for t in self._in(TrialState.FAIL) if t.user_attrs.get("repeated")]
        number = len(self._tried()) + len(repeated)
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311 - no secret
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM_TRIALS, seed=chance.getrandbits(31)
        )
        trial = self._study.ask()
        settings = self._space.suggest(trial)
        trial.set_user_attr("settings", settings)
        return Proposal(trial, settings, trial.user_attrs.get("seconds", 0.0))

    def tell(self, proposal: "Proposal", result: Result, run: str, seconds: float) -> None:
        """Keep what came of a proposal."""
        about = _about(result) | {"run": run, "seconds": seconds}
        for name, value in about.items():  # before the state: without it the trial is asked again
            proposal.trial.set_user_attr(name, value)
        if result.outcome == "finished":
            self._study.tell(proposal.trial, result.value)
        else:
            self._study.tell(proposal.trial, state=TrialState.PRUNED)

    def trials(self) -> list[Trial]:
        """What was tried, in that order; interrupted ones are left out."""
        found = []
        for number, trial in enumerate(self._tried(), 1):
            about = trial.user_attrs
            finished = trial.state == TrialState.COMPLETE
            figures = (trial.value if finished else None), about["low"], about["high"]
            minutes = about["seconds"] / 60
            kept = about["settings"], about["outcome"], minutes, about["run"]
            found.append(Trial(number, *kept, *figures, about["reason"]))
        return found

    @property
    def seconds(self) -> float:
        """Spent on all trials, those that are to go on included."""
        trials = [*self._tried(), *self._in(TrialState.WAITING), *self._in(TrialState.RUNNING)]
        return sum(float(trial.user_attrs.get("seconds", 0.0)) for trial in trials)

    def _tried(self) -> list[FrozenTrial]:
        return self._in(TrialState.COMPLETE, TrialState.PRUNED)

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _untried(self) -> dict[str, str] | None:
        """A combination of choices that was not tried, the recipe's own one first."""
        tried = [json.dumps(trial.params, sort_keys=True) for trial in self._tried()]
        every = list(self._space.every())
        random.Random(self._seed).shuffle(every)  # noqa: S311 - an order, no secret
        for combination in [*([] if self._own is None else [self._own]), *every]:
            if json.dumps(combination, sort_keys=True) not in tried:
                return combination
        return None


@dataclass(slots=True)
class Proposal:
    """A trial at work."""

    trial: optuna.Trial
    settings: dict[str, Any]
    spent: float
    """Seconds that were spent on it before it was interrupted."""

    def spend(self, seconds: float) -> None:
        """Keep how long it took, in all, when it leaves a checkpoint or stops in order."""
        self.trial.set_user_attr("seconds", seconds)
        self.trial.set_user_attr("kept", value=True)

    def runs_as(self, run: str) -> None:
        """Keep the name of its run."""
        self.trial.set_user_attr("run", run)

    def behind(self, share: int, value: float) -> bool:
        """Take note of a figure in the course of training; whether the trial should end.

        Args:
            share: thousandths of training that are done.
            value: in the direction of the sweep's figure.
        """
        self.trial.report(value, share)
        return self.trial.should_prune()
