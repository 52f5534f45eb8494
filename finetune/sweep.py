"""`finetune sweep RECIPE`: runs over varied settings, and the best of them published.

    HOME/sweeps/NAME-<digest>/
        sweep.yaml      the recipe and what is varied
        trials.db       Optuna's study
        trials.csv      what was tried
        precision.json  the dtype that the first trial measured, where it did

Each trial is an ordinary run below HOME/runs. The same command goes on where a process ended.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.markup import escape

from adapters.digests import PREFIX
from adapters.errors import AdapterError, InvalidInput, NotFound
from adapters.manifest import SweepRef
from adapters.registry import Registry
from finetune.config import Recipe, with_settings
from finetune.data import data_files, source_digests
from finetune.files import held
from finetune.findings import PreflightFailed
from finetune.reading import BrokenData
from finetune.reporters import check_installed
from finetune.run import Run, RunBusy, steps_to_run
from finetune.sweep_config import Sought, aim_of, followed
from finetune.sweep_study import Proposal, Result, Study, Trial
from finetune.sweep_table import as_json, best, figure_of, shown, table_of, write_csv
from finetune.sweep_trial import Course, DataChanged, run_trial

_FAILURES = 3
"""So many trials of which none did anything but fail end the sweep."""
_ENDS = (BrokenData, DataChanged, NotFound, RunBusy)
_OF_DATA = ("prompt.", "training.method")
"""Settings that may decide whether preflight finds errors."""


class NoTrialFinished(AdapterError):
    """A sweep has no winner."""

    code = "no_trial_finished"


class SweepRun:
    """A sweep at work in its folder.

    Raises:
        InvalidInput: data or a reporter's package is not there.
        BaseNotFound, IncompatibleAdapter: the base is not there, or takes no adapters.
    """

    def __init__(self, sought: Sought, registry: Registry, console: Console) -> None:
        self._sought, self._registry, self._console = sought, registry, console
        self.aim = aim_of(sought.recipe)
        check_installed(sought.recipe.training.report_to)
        self._base = Run(sought.recipe, registry, console).base
        self._data = source_digests(data_files(sought.recipe.data))
        self.digest = sought.digest(self._data, self._base.ref.fingerprint)
        name = f"{sought.recipe.name}-{self.digest.removeprefix(PREFIX)[:8]}"
        self.folder = registry.home.sweeps / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; what another process left unfinished is put back into the queue.

        Raises:
            InvalidInput: another process holds it.
        """
        busy = InvalidInput(
            f"another process works on the sweep {self.folder.name}",
            hint="wait for it, or change sweep.seed for another one",
        )
        with held(self.folder, busy):
            about = self._sought.recipe.model_dump(mode="json")
            about["sweep"] = self._sought.sweep.model_dump() | {"over": self._sought.space.told()}
            text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
            (self.folder / "sweep.yaml").write_text(text, encoding="utf-8")
            self._study.requeue()
            self._keep_table()
            yield

    def search(self) -> None:
        """Try settings until there were enough, time is over, or all were tried.

        Raises:
            Interrupted: it was asked to stop; the running trial has left its checkpoint.
            NoTrialFinished: all of the first few failed, so it is likely not their settings.
            InvalidInput: the data or the base can't be used, whatever the settings.
        """
        wanted = self._sought.sweep.trials
        while len(trials := self._study.trials()) < wanted and not self._is_over(trials):
            proposal = self._study.propose()
            if proposal is None:
                self._say(f"all settings were tried: {len(trials)}")
                break
            number = len(trials) + 1
            self._console.rule(
                f"[bold]trial {number} of {wanted}[/] {escape(_told(proposal.settings))}",
                align="left",
            )
            self._try(proposal, number)
            self._keep_table()
            self._refuse_failures()

    @property
    def trials(self) -> list[Trial]:
        return self._study.trials()

    def show(self) -> None:
        """Print what was tried, the best first."""
        self._console.print(table_of(self.trials, self.aim))
        for trial in self.trials:
            if trial.reason:
                self._say(f"trial {trial.number} {trial.outcome}: {trial.reason}")

    def publish(self) -> dict[str, Any]:
        """Evaluate the winner on the test examples and publish it with its lineage.

        Returns:
            The summary of its run.

        Raises:
            NoTrialFinished: there is none.
        """
        trials = self.trials
        winner = best(trials, self.aim)
        if winner is None:
            raise NoTrialFinished(
                f"none of {len(trials)} trials finished{_reasons(trials)}",
                hint="vary settings near those of the recipe, or try it alone: finetune run RECIPE",
            )
        self._say(f"trial {winner.number} is best: {_told(winner.settings)}")
        run = Run(self._recipe(winner.settings), self._registry, self._console, resume=True)
        with run.locked():
            if not run.is_done("publish"):
                run.write("sweep.json", self._lineage(len(trials)).model_dump(mode="json"))
            for step, work in steps_to_run(run, "run"):
                self._console.rule(f"[bold]{step}[/] {run.recipe.name}", align="left")
                work()
            return run.summary()

    def summary(self) -> dict[str, Any]:
        """What is known about the sweep, for programs."""
        winner = best(self.trials, self.aim)
        return {
            "folder": str(self.folder), "digest": self.digest, "metric": self.aim.metric,
            "lower_is_better": self.aim.lower_is_better, "space": self._sought.space.told(),
            "trials": as_json(self.trials), "winner": None if winner is None else winner.number,
        }  # fmt: skip

    @cached_property
    def _study(self) -> Study:
        sought = self._sought
        return Study(
            self.folder / "trials.db", sought.space, sought.sweep.seed,
            sought.space.own(sought.recipe), lower=self.aim.lower_is_better,
        )  # fmt: skip

    def _try(self, proposal: Proposal, number: int) -> None:
        """Run one trial and keep what came of it."""
        started = time.monotonic() - proposal.spent

        def behind(share: int, value: float) -> bool:
            proposal.spend(time.monotonic() - started)
            return proposal.behind(share, value)

        prune = self._sought.sweep.prune
        course = Course(followed(self._sought.recipe), self.aim, behind, prune=prune)
        try:
            result, run = self._result(proposal, course)
        finally:
            proposal.spend(time.monotonic() - started)
        self._study.tell(proposal, result, run, time.monotonic() - started)
        trials = self.trials
        leader = best(trials, self.aim)
        so_far = "" if leader is None else f"; best so far: trial {leader.number}"
        figure = f" {self.aim.metric} {figure_of(trials[-1])}" if result.value is not None else ""
        self._say(f"trial {number} {result.outcome}{figure}{so_far}")

    def _result(self, proposal: Proposal, course: Course) -> tuple[Result, str]:
        """What came of some settings, and the name of their run.

        Settings that don't fit shall not end a long search; what no settings change ends it.
        """
        name = ""
        try:
            run = Run(
                self._recipe(proposal.settings), self._registry, self._console, resume=True,
                follow=course,
            )  # fmt: skip
            run.brief = bool(self.trials)
            name = run.folder.name
            proposal.runs_as(name)
            return run_trial(run, self.aim, self._data, self.folder / "precision.json"), name
        except _ENDS:
            raise
        except (AdapterError, torch.OutOfMemoryError, MemoryError) as error:
            if isinstance(error, PreflightFailed) and not self._sought.space.varies(_OF_DATA):
                raise
            return Result("failed", reason=str(error) or type(error).__name__), name

    def _refuse_failures(self) -> None:
        """Stop where all trials failed: it is hardly their settings."""
        trials = self.trials
        failures = [trial for trial in trials if trial.outcome in ("failed", "diverged")]
        if len(failures) == len(trials) and len(trials) % _FAILURES == 0:
            raise NoTrialFinished(
                f"all {len(trials)} trials failed{_reasons(trials)}",
                hint="try the recipe alone: finetune run RECIPE; the same command goes on "
                "with other settings",
            )

    def _recipe(self, settings: dict[str, Any]) -> Recipe:
        return with_settings(self._sought.raw, settings, "the trial")

    def _lineage(self, trials: int) -> SweepRef:
        space = self._sought.space.told()
        return SweepRef(digest=self.digest, metric=self.aim.metric, trials=trials, space=space)

    def _is_over(self, trials: list[Trial]) -> bool:
        minutes = self._sought.sweep.minutes
        if minutes is None or not trials or self._study.seconds < 60 * minutes:
            return False
        self._say(f"{self._study.seconds / 60:.1f} of {minutes:g} minutes are over")
        return True

    def _keep_table(self) -> None:
        write_csv(self.folder / "trials.csv", self.trials, self.aim)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def _told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in settings.items())


def _reasons(trials: list[Trial]) -> str:
    return "".join(f"\n  trial {trial.number}: {trial.reason}" for trial in trials)
