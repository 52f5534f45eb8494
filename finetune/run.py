"""One run's folder and its steps.

    HOME/runs/NAME-<recipe digest>/
        recipe.yaml
        prepared.jsonl, dataset.json          prepare
        precision.json, preflight.html, preflight.json    check
        metrics.jsonl, checkpoints/, epochs/, adapter/, loss.png    train (with Ray also ray.log)
        predictions.jsonl, report.html, report.json       evaluate (engine.log: of a server for it)
        published.json                        publish
        sweep.json                            the sweep that chose the recipe, where one did

A step is done when the file or folder that it writes last is there.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from adapters.bases import Base
from adapters.digests import digest_file
from adapters.errors import IncompatibleAdapter, InvalidInput
from adapters.probe import Probe
from adapters.prompt import Renderer
from adapters.registry import Registry, Version
from finetune import evaluate, preflight, preflight_page, trial
from finetune.base_model import free_memory, load_tokenizer, special_tokens
from finetune.candidate import evaluate_candidate
from finetune.config import Recipe
from finetune.data import (
    ROWS,
    Prepared,
    data_files,
    load_prepared,
    prepare,
    save_prepared,
    source_digests,
)
from finetune.epochs import EPOCHS, chosen_step, final_step
from finetune.executor import LOCAL, Executor
from finetune.files import held, write_whole
from finetune.findings import PreflightFailed, broken_findings
from finetune.live import Live, find_live
from finetune.memory import memory_bytes
from finetune.metrics_file import read_metrics
from finetune.plan import Job, Plan, make_plan
from finetune.progress import Progress, plot_losses
from finetune.publish import (
    Trained,
    dataset_refs,
    make_probe,
    package_versions,
    publish,
    publish_kept,
    tell,
)
from finetune.reading import BrokenData
from finetune.report_page import Settings, render
from finetune.reporters import check_installed
from finetune.train import stop_on_signals

STEPS = ("prepare", "check", "train", "evaluate", "publish")
_MARKS = {
    "prepare": "dataset.json",
    "check": "preflight.json",
    "train": "adapter",
    "evaluate": "report.json",
    "publish": "published.json",
}


class RunBusy(InvalidInput):
    """Another process holds the run's folder."""

    code = "run_busy"


class Run:
    """A recipe at work in its folder.

    Args:
        follow: told of this run and the figures of each regular checkpoint in training; what
            it raises ends training.
    """

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        console: Console,
        *,
        resume: bool = False,
        follow: Callable[["Run", dict[str, Any]], None] | None = None,
        executor: Executor = LOCAL,
    ) -> None:
        self.recipe = recipe
        self.registry = registry
        self.console = console
        self.resume = resume
        self.follow = follow
        self.brief = False
        """The check measures no steps and tells errors alone, since runs like it came before."""
        self.executor = executor
        self.folder = registry.home.runs / f"{recipe.name}-{recipe.digest[:8]}"
        """May be set to another one before anything is done."""
        self._model: Any = None
        self._probe: Probe | None = None

    def is_done(self, step: str) -> bool:
        return (self.folder / _MARKS[step]).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; two processes on one run would spoil it.

        Raises:
            RunBusy: another process holds it.
        """
        busy = RunBusy(
            f"another process works on the run {self.folder.name}",
            hint="wait for it, or change the recipe's name",
        )
        with held(self.folder, busy):
            (self.folder / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
            yield

    @cached_property
    def base(self) -> Base:
        base = self.registry.base(self.recipe.base)
        if not base.lora:
            raise IncompatibleAdapter(
                f"base {base.name} can't be adapted: {base.lora_reason}", param="base"
            )
        return base

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.base.path)

    @cached_property
    def prepared(self) -> Prepared:
        return load_prepared(self.folder)

    @cached_property
    def plan(self) -> Plan:
        train = self.prepared.of("train")
        return make_plan(
            self.recipe, train, self.base.parameters, self.base.path, self.folder / "precision.json"
        )

    @cached_property
    def report(self) -> dict[str, Any]:
        """The evaluation's report."""
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text("utf-8"))
        return report

    # the steps, in order

    def prepare(self) -> None:
        """Read the data, make examples and token ids, and part train from held-out."""
        before = self._prepared_digest()
        renderer = Renderer(self.tokenizer)
        try:
            prepared = prepare(self.recipe, renderer, self.base.context_length)
        except BrokenData as error:
            page = preflight_page.render_broken(self.recipe.name, broken_findings(error))
            self._write_page(page)
            raise
        save_prepared(prepared, self.folder, self.base.ref.fingerprint)
        if self._prepared_digest() != before:
            self._forget(
                "adapter", "checkpoints", EPOCHS, "precision.json", "preflight.json", "report.json",
                "published.json", "sweep.json",
            )  # fmt: skip
        self.__dict__.pop("prepared", None)
        counts = {split: len(self.prepared.of(split)) for split in ("train", "test")}
        self.console.print(f"{counts['train']} training examples, {counts['test']} held out")

    def check(self) -> None:
        """Look for what would make training useless.

        Raises:
            PreflightFailed: with every reason.
        """
        self._forget("preflight.json")
        check_installed(self.recipe.training.report_to)
        special = special_tokens(self.tokenizer)
        report = preflight.check(self.prepared, self.recipe, self.plan, special)
        if not self.brief and not report.errors:
            estimate = trial.measure(self.recipe, self.prepared, self.base, self.plan)
            preflight.add_estimate(report, asdict(estimate), memory_bytes(self.plan.device))
        if not self.brief or report.errors:
            preflight_page.show(report, self.console)
        if self.executor.kind == "ray":
            self.console.print("time and memory are those of one worker alone, without Ray")
        self._write_page(preflight_page.render(report))
        if report.errors:
            raise PreflightFailed(report.errors, report.to_json())
        self.write("preflight.json", report.to_json())

    def train(self) -> None:
        """Train, from the last checkpoint when resuming."""
        self._forget("adapter", "report.json", "published.json", "sweep.json")
        self._model = self._probe = None
        progress = Progress(self.plan.tokens, self.console)
        with stop_on_signals() as stop:
            job = Job(self.recipe, self.prepared, self.base, self.plan, self.folder, self._start())
            follow = None if self.follow is None else partial(self.follow, self)
            self.executor.train(
                job, resume=self.resume, stop=stop, progress=progress, follow=follow
            )
            asked_to_stop = stop()
        plot_losses(read_metrics(self.folder / "metrics.jsonl"), self.folder / "loss.png")
        if asked_to_stop:  # in the last step: it is trained, and what comes next is left
            raise KeyboardInterrupt

    def _start(self) -> Path | None:
        """The weights of the version that training goes on from."""
        parent = self.recipe.parent
        if self.recipe.training.start == "fresh" or parent is None:
            return None
        version = self.registry.verified(parent)
        if differences := version.manifest.base.differences(self.base.ref):
            raise IncompatibleAdapter(
                f"{version.reference} was trained on a base with another {', '.join(differences)}",
                hint="name the base that it was trained on, or set training.start to fresh",
                param="base",
            )
        return version.folder / "adapter_model.safetensors"

    def evaluate(self) -> None:
        """Measure base, adapter and live version on the held-out examples; judge the gate."""
        self._forget("report.json", "report.html", "published.json")
        live = find_live(self.registry, self.recipe, self.base)
        if self.recipe.evaluation.on_server:
            report, predictions = self._evaluate_on_server(live)
        else:
            report, predictions = evaluate.evaluate(
                self.adapted_model(), self.tokenizer, self.recipe, self.prepared, live
            )
        page = render(report, predictions, self._settings())
        (self.folder / "report.html").write_text(page, "utf-8", "xmlcharrefreplace")
        evaluate.save_report(report, predictions, self.folder)
        self.__dict__.pop("report", None)
        evaluate.show(report, self.console)

    def publish(self) -> None:
        """Record the probe and publish the version, with its gate's verdict.

        When another version went live since the evaluation, it is evaluated again.
        """
        if self.recipe.evaluation.compare_live and self._live_moved():
            self.console.print("another version went live since the evaluation, so: again")
            self.evaluate()
        run, told = self._trained(), []
        # first, so that the last version of the name is the run's result
        for step, checkpoint in publish_kept(
            self.registry, run, self.adapted_model, self.plan.dtype, self.console.print
        ):
            told.append(tell(run, checkpoint, step, step))
        version = publish(self.registry, run, self._recorded_probe(), self.report)
        chosen = chosen_step(self.folder, self.recipe.training)
        told.append(tell(run, version, final_step(self.folder), chosen))
        published = {"version": version.reference, "digest": version.digest, "checkpoints": told}
        self.write("published.json", published)
        lines = [f"warning: {misfit}" for misfit in self.registry.misfits(version)]
        lines += gate_notes(version, self.report.get("gate"))
        for line in [*lines, f"{version.reference} {version.digest}"]:
            self.console.print(line, highlight=False, soft_wrap=True)

    def check_unchanged(self) -> None:
        """Compare what an earlier `prepare` read with what is there now.

        Raises:
            InvalidInput: data or base changed since.
        """
        now = source_digests(data_files(self.recipe.data))
        about = json.loads((self.folder / "dataset.json").read_text("utf-8"))
        same_base = about["base"] == self.base.ref.fingerprint
        if now != about["sources"] or not same_base:
            what = "data" if same_base else "base model"
            raise InvalidInput(
                f"the {what} changed since this run was prepared",
                hint="prepare it again: finetune prepare, or run without --resume",
                param="data" if same_base else "base",
            )

    def summary(self) -> dict[str, Any]:
        """What is known about the run, for programs."""
        found: dict[str, Any] = {
            "folder": str(self.folder),
            "done": [step for step in STEPS if self.is_done(step)],
        }
        for key, name in (("preflight", "preflight.json"), ("evaluation", "report.json")):
            if (self.folder / name).is_file():
                found[key] = json.loads((self.folder / name).read_text("utf-8"))
        if self.is_done("publish"):
            found |= json.loads((self.folder / "published.json").read_text("utf-8"))
        return found

    def _evaluate_on_server(self, live: Live | None) -> Any:
        probe, model = self._recorded_probe(), self.adapted_model()
        told = evaluate.told_losses(model, self.tokenizer, self.recipe, self.prepared, live)
        model = self._model = None
        free_memory()  # the engine takes what there is
        say = self.console.print
        return evaluate_candidate(self.registry, self._trained(), probe, live, told, say)

    def _recorded_probe(self) -> Probe:
        if self._probe is None:
            self._probe = make_probe(self.adapted_model(), self.prepared, self.plan.dtype)
        return self._probe

    def _trained(self) -> Trained:
        return Trained(self.recipe, self.prepared, self.base, self.folder)

    def _live_moved(self) -> bool:
        """Whether another version is live than when this one was evaluated."""
        live = find_live(self.registry, self.recipe, self.base)
        before = self.report.get("live")
        return (live and live.identity) != (before and before["identity"])

    def _settings(self) -> Settings:
        plan, losses = self.plan, self.folder / "loss.png"
        data = {f"{ref.split} data": f"{ref.examples} examples, {ref.source}, {ref.digest}"
                for ref in dataset_refs(self.prepared)}  # fmt: skip
        known = {
            "base": f"{self.base.name}, {self.base.ref.fingerprint}",
            **data,
            "machine": f"{plan.device}, {plan.dtype}, {plan.threads} threads",
            **package_versions(),
        }
        return Settings(
            self.recipe.to_yaml(), known, losses.read_bytes() if losses.is_file() else None
        )

    def adapted_model(self) -> Any:
        """The base with the adapter that this run trained."""
        if self._model is None:
            plan, adapter = self.plan, self.folder / "adapter"
            self._model = evaluate.load_adapter(self.base, adapter, plan.dtype, plan.device)
        return self._model

    def _prepared_digest(self) -> str | None:
        path = self.folder / ROWS
        return digest_file(path) if path.is_file() else None

    def _forget(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _write_page(self, page: str) -> None:
        path = self.folder / "preflight.html"
        path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
        if not self.brief:
            self.console.print(f"[dim]{path}[/]", highlight=False, soft_wrap=True)

    def write(self, name: str, value: Any) -> None:
        """Write a file of JSON to the folder, whole or not at all."""
        write_whole(self.folder / name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def gate_notes(version: Version, verdict: dict[str, Any] | None) -> list[str]:
    """What to tell of a published version's gate; content published before keeps its verdict."""
    found = version.manifest.gate
    if (None if found is None else found.model_dump(mode="json")) != verdict:
        kept = "no gate" if found is None else found.reason
        return [
            f"warning: this content was published before as {version.reference}, and what it "
            f"showed then stays: {kept}"
        ]
    return [] if found is None or found.passed else [f"warning: {found.reason}"]


def steps_to_run(run: Run, wanted: str) -> list[tuple[str, Callable[[], None]]]:
    """The steps that a command has to do, in order.

    A single step brings along the earlier ones that are missing; `run` does them all. With
    resume, what is done stays done.
    """
    last = len(STEPS) - 1 if wanted == "run" else STEPS.index(wanted)
    chosen = []
    for step in STEPS[: last + 1]:
        asked = wanted in ("run", step)
        if not run.is_done(step) or (asked and not run.resume):
            chosen.append((step, getattr(run, step)))
    return chosen
