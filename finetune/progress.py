"""How far training is: a live bar at a terminal, a line every ten seconds elsewhere."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from finetune.preflight import duration

_LINE_EVERY_S = 10.0
_SMOOTHING = 0.9


class Progress:
    """Shows loss, tokens a second and the time left."""

    def __init__(self, tokens: int, console: Console | None = None) -> None:
        self.console = Console(stderr=True) if console is None else console
        self._tokens = tokens
        self._done = 0
        self._seen = 0
        self._loss: float | None = None
        self._started = self._line = time.monotonic()
        self._bar = Bar(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=max(tokens, 1), step="0", text="")

    def __enter__(self) -> Self:
        self._started = self._line = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def skip(self, step: int) -> None:
        """Say that a run goes on after some steps."""
        if step:
            self.console.print(f"resumed after step {step}", highlight=False)

    def chosen(self, step: int, figure: str, value: float) -> None:
        """Say whose weights are kept."""
        self.console.print(
            f"kept the adapter of step {step}: best validation {figure}, {value:.4g}",
            highlight=False,
        )

    def advance(self, step: int, steps: int, tokens: int, loss: float) -> float:
        """Count one step; returns tokens a second since the start of this process's part."""
        self._done += tokens
        self._loss = (
            loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        )
        now = time.monotonic()
        self._seen += 1
        speed = self._done / max(now - self._started, 1e-9)
        left = (steps - step) * (now - self._started) / self._seen
        text = f"loss {self._loss:.3f}  {speed:.0f} tokens/s  {duration(left)} left"
        self._bar.update(
            self._task, completed=self._tokens * step / steps, step=f"{step}/{steps}", text=text
        )
        last = step == steps
        if not self.console.is_terminal and (last or now - self._line >= _LINE_EVERY_S):
            self._line = now
            self.console.print(f"step {step}/{steps}  {text}", highlight=False)
        return round(speed, 1)


def plot_losses(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw metrics.jsonl: the loss of each step, its moving mean, and the validation loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats a token)")
    steps, losses = [e["step"] for e in entries], [e["loss"] for e in entries]
    axes.plot(steps, losses, color="0.8", linewidth=1, label="training, each step")
    means: list[float] = []
    for loss in losses:
        means.append(loss if not means else _SMOOTHING * means[-1] + (1 - _SMOOTHING) * loss)
    axes.plot(steps, means, label="training, moving mean")
    checked = [e for e in entries if "validation_loss" in e]
    if checked:
        axes.plot(
            [e["step"] for e in checked], [e["validation_loss"] for e in checked], "o-",
            label="validation",
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=110)
