"""Plots of a run as SVG, to stand in a page that needs no other file."""

import io
from collections.abc import Iterable, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.outcomes import MEASURES, Outcome, measured, percentile
from loadtests.sampling import Sample
from loadtests.windows import Window, knee

PERCENTS = (50, 95, 99)
_TAIL = (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.9)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text: small, and can be searched
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    page = text.getvalue()
    return page[page.index("<svg") :]


def _axes(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def latency_by_percentile(answered: Sequence[Outcome]) -> str:
    """Every measure from its fastest to its slowest answers."""
    figure, axes = _axes("Latency by percentile", "percentile", "ms")
    places = range(len(_TAIL))
    for measure, words in MEASURES.items():
        samples = measured(answered, measure)
        if samples:
            values = [percentile(samples, percent) for percent in _TAIL]
            axes.plot(places, values, marker="o", markersize=3, label=words)
    axes.set_xticks(list(places), [f"{percent:g}" for percent in _TAIL])
    axes.set_yscale("log")
    return _finished(figure, axes)


def latency_over_load(windows: Iterable[Window], measure: str) -> str:
    """A measure's percentiles at each rate that was offered."""
    figure, axes = _axes(
        f"{MEASURES[measure].capitalize()} over load", "requests offered per second", "ms"
    )
    ordered = sorted(windows, key=lambda window: window.offered_per_s)
    for percent in PERCENTS:
        points = [
            (window.offered_per_s, percentile(samples, percent))
            for window in ordered
            if (samples := measured(window.arrived, measure))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"p{percent}")
    return _finished(figure, axes)


def throughput_over_concurrency(windows: Sequence[Window]) -> str:
    """Answers per second at each number of unanswered requests, and where it bends."""
    figure, axes = _axes(
        "Throughput against concurrency", "requests in flight (mean)", "answers per second"
    )
    points = [(window.in_flight, window.answered_per_s) for window in windows]
    if points:
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label="stretches")
    bend = knee(points)
    if bend is not None:
        axes.axvline(bend[0], color="tab:red", linestyle="--", label=f"knee: {bend[0]:.3g}")
    return _finished(figure, axes)


def rates_over_time(windows: Sequence[Window]) -> str:
    """What was offered, answered, and answered well."""
    figure, axes = _axes("Rates over time", "seconds", "per second")
    moments = [window.begin_s for window in windows]
    for words, values in (
        ("offered", [window.offered_per_s for window in windows]),
        ("answered", [window.answered_per_s for window in windows]),
        ("goodput", [window.good_per_s for window in windows]),
    ):
        axes.step(moments, values, where="post", label=words)
    return _finished(figure, axes)


def server_over_time(samples: Sequence[Sample]) -> str:
    """What the server says of itself."""
    figure, axes = _axes("The server", "seconds", "requests")
    for name, words in (("running", "running"), ("waiting", "waiting"), ("queued", "queued")):
        _line(axes, samples, name, words)
    shares = axes.twinx()
    _line(shares, samples, "kv_usage", "KV cache in use", color="tab:red", linestyle=":")
    shares.set(ylim=(0, 1), ylabel="share")
    lines = [*axes.get_lines(), *shares.get_lines()]
    axes.legend(handles=lines, fontsize="small")
    return _svg(figure)


def _line(axes: Axes, samples: Sequence[Sample], name: str, words: str, **how: str) -> None:
    points = [(one.at_s, one.values[name]) for one in samples if name in one.values]
    if points:
        axes.plot(*zip(*points, strict=True), label=words, **how)  # type: ignore[arg-type]  # colours and styles are text


def _finished(figure: Figure, axes: Axes) -> str:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    return _svg(figure)
