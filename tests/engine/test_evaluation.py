"""Evaluation on a running server: what users get, measured as in the trainer's process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.registry import Registry
from adapters.transfer import import_own
from finetune.config import check_recipe
from finetune.evaluate_version import evaluate_version
from finetune.run import Run, steps_to_run
from tests.made import Recipe, publish
from tests.serving import Running

WORDS = ("save the file", "open the folder", "close it", "find a page", "print the chart")
OPTIONS = ["evaluation.max_new_tokens=8", "evaluation.bootstrap_samples=20"]


def written(folder: Path, lines: list[dict[str, Any]]) -> list[str]:
    path = folder / "held-out.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(path)]


def both(server: Running, reference: str, data: list[str]) -> list[Any]:
    """Report and predictions in this process, and on the server."""
    return [
        evaluate_version(server.registry, reference, data, OPTIONS, where)
        for where in (None, server.url)
    ]


def test_a_servers_probabilities_of_labels_are_those_of_this_process(
    server: Running, tmp_path: Path
) -> None:
    publish(server.registry, server.base, Recipe(
        "mood", seed=71, task="classify", labels=["positive", "neutral", "negative"]
    ))  # fmt: skip
    data = written(tmp_path, [
        {"text": text, "label": ("positive", "negative")[n % 2]} for n, text in enumerate(WORDS)
    ])  # fmt: skip
    (here, ours), (there, theirs) = both(server, "mood@2", data)

    assert set(here["metrics"]) == set(there["metrics"])
    assert there["live"]["reference"] == "mood@1"
    for mine, other in zip(ours, theirs, strict=True):
        for who in ("base", "adapter", "live"):
            name = f"{who}_probabilities"
            assert other[name] == pytest.approx(mine[name], abs=1e-3)
        assert mine["adapter_score"] != pytest.approx(mine["base_score"], abs=1e-2)


@pytest.mark.parametrize(
    ("reference", "line", "missing"),
    [
        ("one@1", lambda text: {"prompt": text, "completion": "it is done"},
         {"perplexity", "loss"}),
        ("one@1", lambda text: {"messages": [{"role": "user", "content": text},
                                             {"role": "assistant", "content": "it is done"}]},
         {"perplexity", "loss"}),
        ("enfr@1", lambda text: {"source": text, "target": "le fichier est là"}, set()),
    ],
)  # fmt: skip
def test_a_servers_answers_are_those_of_this_process(
    reference: str, line: Any, missing: set[str], server: Running, tmp_path: Path
) -> None:
    (here, ours), (there, theirs) = both(
        server, reference, written(tmp_path, list(map(line, WORDS)))
    )

    assert set(here["metrics"]) - set(there["metrics"]) == missing
    for who in ("base", "adapter"):
        # in this process answers end a little after their references, and rounding may part ties
        same = [mine[who][:8] == other[who][:8] for mine, other in zip(ours, theirs, strict=True)]
        assert sum(same) >= len(same) - 1, (ours, theirs)


def test_another_content_of_that_name_on_the_server_is_not_measured(
    server: Running, tmp_path: Path
) -> None:
    from adapters.errors import InvalidInput

    elsewhere = Registry.open(tmp_path / "home")
    elsewhere.add_base(server.base)
    publish(elsewhere, server.base, Recipe("one", seed=72))
    data = written(tmp_path, [{"prompt": "save", "completion": "it"}])
    with pytest.raises(InvalidInput, match="one@1 is another version there"):
        evaluate_version(elsewhere, "one@1", data, OPTIONS, server.url)


def test_a_run_is_measured_by_a_server_before_it_is_published(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def serving(own: Registry, *_: Any) -> Iterator[str]:
        """Ours, with the versions of a registry that it would be started for."""
        for version in own.versions("tuned"):
            assert import_own(server.registry, version.folder).reference == version.reference
        yield server.url

    monkeypatch.setattr("finetune.candidate.serving", serving)
    registry = Registry.open(tmp_path / "home")
    registry.add_base(server.base)
    moods = written(tmp_path, [
        {"text": f"{text} {n}", "label": ("positive", "negative")[n % 2]}
        for n in range(12) for text in WORDS
    ])  # fmt: skip

    def made(seed: int, **evaluation: Any) -> Run:
        run = Run(check_recipe({
            "name": "tuned", "task": "classify", "data": {"train": moods},
            "training": {"max_steps": 4, "learning_rate": 0.02, "seed": seed},
            "evaluation": {"bootstrap_samples": 20, "max_examples": 8, **evaluation},
            "gate": {"metric": "accuracy"},
        }), registry, Console(quiet=True))  # fmt: skip
        with run.locked():
            for step, work in steps_to_run(run, "run"):
                if step != "check":
                    work()
        return run

    first = made(1)
    registry.promote("tuned@1", why="to have a live one", force=True)
    second = made(2, on_server=True)
    measured = {
        where: [json.loads(line) for line in (run.folder / "predictions.jsonl").open()]
        for where, run in (("here", first), ("there", second))
    }
    assert second.report["live"]["compared"] is True
    assert second.report["gate"] is not None
    assert not (second.folder / "engine").exists()
    for one, other in zip(measured["here"], measured["there"], strict=True):
        for mine, theirs in (("base", "base"), ("adapter", "live")):
            expected = one[f"{mine}_probabilities"]
            assert other[f"{theirs}_probabilities"] == pytest.approx(expected, abs=1e-3)
        assert other["adapter_score"] != pytest.approx(other["live_score"], abs=1e-4)
