"""An evaluation as one HTML page that needs nothing else: figures, plots, examples, settings.

Every text goes through `html.escape`; the page runs no script and fetches nothing, and says so
to the browser. Plots are images inside it.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from finetune.html_page import page

_SHOWN = 10
_LONGEST = 2000
"""Characters of one text."""
_CONFUSION_LABELS = 30
_MODELS = {"base": "base", "adapter": "adapter", "live": "live version"}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } img { max-width: 100% }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: left;
  vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
.passed, .failed { padding: .6rem 1rem; border-left: .4rem solid #2a7; background: #eefaf3 }
.failed { border-color: #c33; background: #fdeeee }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto }
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is needed to repeat a run."""

    recipe: str
    """YAML."""
    known: dict[str, str]
    """Base, data, packages, machine: name to value."""
    losses: bytes | None = None
    """The plot of training, a PNG."""


def render(report: dict[str, Any], predictions: list[dict[str, Any]], settings: Settings) -> str:
    """The page as HTML.

    Args:
        report, predictions: as `evaluate` returns them.
    """
    parts = [
        f"<h1>{escape(report['name'])}</h1>",
        f"<p>{escape(report['task'])}, {report['examples']} held-out examples</p>",
        *_gate(report), *_metrics(report), *_classes(report), *_examples(report, predictions),
        *_settings(settings),
    ]  # fmt: skip
    return page(f"{report['name']}: evaluation", parts, _STYLE, images=True)


def _gate(report: dict[str, Any]) -> list[str]:
    verdict = report.get("gate")
    if verdict is None:
        return ["<p>The recipe states no gate.</p>"]
    kind = "passed" if verdict["passed"] else "failed"
    rows = [
        [
            check["metric"], check["slice"] or "all", check["against"],
            check["missing"] or f"{_number(check['ours'])} against {_number(check['other'])}",
            _number(check["gain"]), _number(check["bound"]),
            f"{'at least' if check['kept'] else 'above'} {_number(check['limit'])}",
            check["examples"], "yes" if check["passed"] else "no",
        ]
        for check in verdict["checks"]
    ]  # fmt: skip
    heads = (
        "metric", "examples", "against", "values", "gain",
        f"surely ({verdict['confidence'] * 100:g} %)", "asked", "number", "passed",
    )  # fmt: skip
    return [f'<p class="{kind}">{escape(verdict["reason"])}</p>', _table(heads, rows)]


def _metrics(report: dict[str, Any]) -> list[str]:
    if not report["metrics"]:
        return ["<p>Nothing was measured.</p>"]
    who = _measured(report["metrics"])
    rivals = [name for name in who if name != "adapter"]
    rows = []
    for name, entry in report["metrics"].items():
        gains = report["gains"][name]
        rows.append(
            [name, *(_with_interval(*_values(entry, model)) for model in who),
             *(_with_interval(*(gains[rival][k] for k in ("gain", "low", "high")))
               for rival in rivals),
             entry["unit"], entry["signature"] or ""]
        )  # fmt: skip
    heads = ["metric", *(_MODELS[name] for name in who),
             *(f"gain over {_MODELS[name]}" for name in rivals), "unit", "signature"]  # fmt: skip
    live = report["live"]
    note = ""
    if live is not None:
        reason = "" if live["compared"] else f", not compared: {live['reason']}"
        note = f"<p>Live version: {escape(live['reference'] + reason)}</p>"
    about = "In brackets: 95 % intervals, by a paired bootstrap over the same examples."
    picture = _image(_plot_metrics(report["metrics"]), "svg+xml")
    return ["<h2>Metrics</h2>", note, _table(heads, rows), f"<p>{about}</p>", picture]


def _measured(entries: dict[str, Any]) -> list[str]:
    live = any("live_value" in entry for entry in entries.values())
    return ["base", "adapter", *(["live"] if live else [])]


def _values(entry: dict[str, Any], model: str) -> tuple[float, float, float]:
    prefix = "" if model == "adapter" else f"{model}_"
    value, low, high = (float(entry[f"{prefix}{part}"]) for part in ("value", "low", "high"))
    return value, low, high


def _classes(report: dict[str, Any]) -> list[str]:
    classes = report.get("classes")
    if classes is None:
        return []
    adapter = classes["adapter"]
    rows = []
    for place, label in enumerate(adapter["labels"]):
        row = [label, adapter["support"][place]]
        for kind in ("precision", "recall", "f1"):
            row += [_number(_of(classes[who], kind, label)) for who in classes]
        rows.append(row)
    heads = ["label", "examples"]
    heads += [
        f"{kind}, {_MODELS[who]}" for kind in ("precision", "recall", "F1") for who in classes
    ]
    parts = ["<h2>Labels</h2>", _table(heads, rows), "<h2>Confusion</h2>"]
    parts += [_confusion(_MODELS[who], found) for who, found in classes.items()]
    picture = _image(_plot_reliability(classes), "svg+xml")
    return [*parts, "<h2>Calibration</h2>", picture]


def _of(found: dict[str, Any], kind: str, label: str) -> float | None:
    if label not in found["labels"]:
        return None
    value: float = found[kind][found["labels"].index(label)]
    return value


def _confusion(title: str, found: dict[str, Any]) -> str:
    labels, counts = found["labels"], found["confusion"]
    if len(labels) <= _CONFUSION_LABELS:
        rows = [[label, *row] for label, row in zip(labels, counts, strict=True)]
        return f"<h3>{title}</h3>" + _table(["right label, by row", *labels], rows)
    pairs = [
        (counts[i][j], labels[i], labels[j])
        for i in range(len(labels)) for j in range(len(labels)) if i != j and counts[i][j]
    ]  # fmt: skip
    pairs.sort(key=lambda pair: -pair[0])
    heads = ["times", "right label", "chosen label"]
    return f"<h3>{title}: the most confused</h3>" + _table(heads, pairs[:_CONFUSION_LABELS])


def _examples(report: dict[str, Any], predictions: list[dict[str, Any]]) -> list[str]:
    if not predictions:
        return []
    rival = "live" if "live_score" in predictions[0] else "base"

    def change(entry: dict[str, Any]) -> float:
        return float(entry["adapter_score"] - entry[f"{rival}_score"])

    worst = sorted(predictions, key=lambda entry: float(entry["adapter_score"]))[:_SHOWN]
    changed = sorted(filter(change, predictions), key=lambda entry: -abs(change(entry)))[:_SHOWN]
    return [
        f"<p>Examples are ordered by: {escape(report['score_of_each'])}.</p>",
        "<h2>The worst examples</h2>", _predicted(worst),
        f"<h2>The most changed examples, against the {_MODELS[rival]}</h2>", _predicted(changed),
    ]  # fmt: skip


def _predicted(entries: list[dict[str, Any]]) -> str:
    who = [name for name in _MODELS if entries and f"{name}_score" in entries[0]]
    rows = []
    for entry in entries:
        said = [f"{entry.get(name, '')}\n({_number(entry[f'{name}_score'])})" for name in who]
        reference = entry["reference"]
        wanted = reference if isinstance(reference, str) else " | ".join(reference)
        rows.append([_input(entry["input"]), wanted, *said, entry["origin"]])
    return _table(["input", "reference", *(_MODELS[name] for name in who), "from"], rows)


def _input(given: dict[str, Any]) -> str:
    if "messages" in given:
        return "\n".join(f"{m['role']}: {m['content']}" for m in given["messages"])
    return "\n".join(f"{name}: {value}" for name, value in given.items() if value is not None)


def _settings(settings: Settings) -> list[str]:
    parts = ["<h2>How to repeat it</h2>", "<p>modiste finetune run recipe.yaml, with:</p>"]
    parts += [f"<pre>{escape(settings.recipe)}</pre>", _table((), settings.known.items())]
    if settings.losses is not None:
        parts += ["<h2>Training</h2>", _image(settings.losses, "png")]
    return parts


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose cells are texts, whatever is in them."""

    def line(cells: Sequence[Any], tag: str) -> str:
        inside = "".join(f"<{tag}>{escape(_short(str(cell)))}</{tag}>" for cell in cells)
        return f"<tr>{inside}</tr>"

    lines = [line(heads, "th")] if heads else []
    return "<table>" + "\n".join([*lines, *(line(row, "td") for row in rows)]) + "</table>"


def _short(text: str) -> str:
    more = len(text) - _LONGEST
    return text if more <= 0 else f"{text[:_LONGEST]}… ({more} more characters)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _image(content: bytes, kind: str) -> str:
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _plot_metrics(entries: dict[str, Any]) -> bytes:
    """Each metric on its own axis: every model's value with its interval."""
    from matplotlib.figure import Figure

    who = _measured(entries)
    figure = Figure(figsize=(2.4 * len(entries), 2.6), layout="constrained")
    for number, (name, entry) in enumerate(entries.items(), 1):
        axes = figure.add_subplot(1, len(entries), number, title=name)
        for place, model in enumerate(who):
            value, low, high = _values(entry, model)
            bars = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
            axes.errorbar([place], [value], yerr=bars, fmt="o", capsize=4)
        axes.set_xticks(range(len(who)), who)
        axes.margins(x=0.3)
    return _svg(figure)


def _plot_reliability(classes: dict[str, Any]) -> bytes:
    """How often labels were right, by how sure the model was."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="probability of the chosen label", ylabel="share right")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    for who, found in classes.items():
        bins = found["reliability"]
        axes.plot(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", label=_MODELS[who]
        )
    axes.legend()
    return _svg(figure)


def _svg(figure: Any) -> bytes:
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "report"}):  # equal figures give equal bytes
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
