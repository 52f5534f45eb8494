"""A home folder with a tiny base, and recipes that train on it in a second."""

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bases import Base, fingerprint
from adapters.prompt import Renderer
from adapters.registry import Registry
from finetune.__main__ import main
from finetune.base_model import load_tokenizer
from finetune.config import Recipe, check_recipe
from finetune.data import Row, prepare
from finetune.plan import Job, make_plan
from tests.tiny import make_tiny_base

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny products gain nothing from more threads, which only wait for each other."""
    for module in ("plan", "trial", "evaluate_version"):
        monkeypatch.setattr(f"finetune.{module}.cores", lambda: 1)


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared to the last digit is what a CPU computes, on every machine."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that a test starts


@pytest.fixture(autouse=True)
def same_handler() -> Iterator[None]:
    """The command ends the process on SIGTERM; the tests' own does not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def finetune(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command in this process; returns its exit code, JSON answer and messages."""

    def call(*arguments: str, sets: Iterable[str] = ()) -> tuple[int, dict[str, Any], str]:
        options = [part for text in sets for part in ("--set", text)]
        code = main([*arguments, "--home", str(home), "--json", *options])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


WORDS = ["save", "open", "close", "find", "print", "copy", "move", "share"]
THINGS = ["file", "folder", "page", "note", "table", "chart"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")
    return Base(
        name="tiny",
        path=folder,
        source="tests",
        ref=fingerprint(folder, "tiny", "float32"),
        context_length=512,
        architecture="LlamaForCausalLM",
        parameters=100_000,
        lora=True,
    )


@pytest.fixture(scope="session")
def tokenizer(base: Base) -> Any:
    return load_tokenizer(base.path)


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture
def home(tmp_path: Path, base: Base) -> Path:
    Registry.open(tmp_path / "home").add_base(base)
    return tmp_path / "home"


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write JSON lines, or text as it is, to a file."""

    def write(name: str, lines: list[Any]) -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def task_files(write_lines: Callable[..., Path]) -> dict[str, Path]:
    """Forty-eight examples for each task."""
    pairs = [(word, thing) for word in WORDS for thing in THINGS]
    functions = [f"{w}_{t}".replace(" ", "_") for w, t in pairs]
    return {
        "translate": write_lines(
            "translate.jsonl",
            [{"source": f"{w} the {t}", "target": f"le {t} {w}"} for w, t in pairs],
        ),
        "classify": write_lines(
            "classify.jsonl",
            [
                {"text": f"{w} the {t}", "label": "long" if len(t) > 4 else "short"}
                for w, t in pairs
            ],
        ),
        "classify-many": write_lines(
            "classify-many.jsonl", [{"text": f"{w} the {t}", "label": w} for w, t in pairs]
        ),
        "answer": write_lines(
            "answer.jsonl",
            [
                {"question": f"what to {w}?", "context": f"{w} the {t}", "answer": t}
                for w, t in pairs
            ],
        ),
        "generate": write_lines(
            "generate.jsonl",
            [{"prompt": f"{w} the {t}", "completion": f"{t} {w}"} for w, t in pairs],
        ),
        "code": write_lines(
            "code.jsonl",
            [
                {
                    "prompt": f"write {f}(x)",
                    "completion": f"def {f}(x):\n    return x",
                    "asserts": [f"assert {f}(2) == 2"],
                }
                for f in functions
            ],
        ),
    }


@pytest.fixture
def make_recipe(task_files: dict[str, Path]) -> Callable[..., Recipe]:
    """A recipe for a task on its forty-eight examples; parts may be replaced."""

    def make(task: str = "translate", **parts: Any) -> Recipe:
        languages = {"source_lang": "en", "target_lang": "fr"} if task == "translate" else {}
        raw = {
            "name": task,
            "task": task,
            "data": {"train": str(task_files[task]), **languages, **parts.pop("data", {})},
            "training": {"epochs": 1, "batch_tokens": 256, **parts.pop("training", {})},
            "evaluation": {"max_new_tokens": 8, "bootstrap_samples": 50},
            **parts,
        }
        return check_recipe(raw)

    return make


@pytest.fixture
def preferences(write_lines: Callable[..., Path]) -> Path:
    """Forty-eight preferences in OpenAI's form: a thing's name rather than the word."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return write_lines(
        "preferences.jsonl",
        [
            {
                "input": {"messages": [{"role": "user", "content": f"{word} the {thing}"}]},
                "preferred_output": said(f"the {thing}"),
                "non_preferred_output": said(f"{word} it"),
            }
            for word in WORDS
            for thing in THINGS
        ],
    )


@pytest.fixture
def make_job(
    make_recipe: Callable[..., Recipe], renderer: Renderer, base: Base, tmp_path: Path
) -> Callable[..., Job]:
    """A job whose data is prepared, in a folder of its own."""

    def make(folder: str = "run", task: str = "translate", **parts: Any) -> Job:
        recipe = make_recipe(task, **parts)
        prepared = prepare(recipe, renderer, base.context_length)
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        plan = make_plan(recipe, prepared.of("train"), base.parameters, base.path)
        return Job(recipe, prepared, base, plan, place)

    return make


@pytest.fixture
def make_preference_job(make_job: Callable[..., Job], preferences: Path) -> Callable[..., Job]:
    """A job of preference tuning."""

    def make(folder: str = "run", **parts: Any) -> Job:
        parts["data"] = {"train": str(preferences), **parts.pop("data", {})}
        parts["training"] = {"method": "dpo", "batch_tokens": 512, **parts.pop("training", {})}
        return make_job(folder, "generate", **parts)

    return make


@pytest.fixture
def make_row() -> Callable[..., Row]:
    def make(ids: list[int], supervised: list[int], **changes: Any) -> Row:
        known: dict[str, Any] = {
            "split": "train", "origin": "file:1", "key": str(ids), "input": {},
            "references": ["x"], "prompt_ids": ids[: supervised[0] if supervised else None],
            "ids": ids, "supervised": supervised, "truncated": False,
        }  # fmt: skip
        return Row(**{**known, **changes})

    return make
