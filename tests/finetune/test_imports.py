"""Adapters that were made elsewhere: what is published of them, and what is refused."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from adapters.bases import Base
from adapters.compatibility import Takes
from adapters.errors import InvalidName, StoreFailed
from adapters.probe import Probe, judge
from adapters.prompt import GenerateInput, Renderer, default_prompt
from adapters.registry import Registry, Version
from adapters.transfer import export
from finetune import imports
from finetune.evaluate import load_adapter
from finetune.publish import ends_of
from tests.made import TARGETS, Recipe, publish, random_adapter

WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    """A LoRA as peft itself saves it, README included."""
    random_adapter(base, Recipe("x")).save_pretrained(tmp_path / "Their_LoRA")
    return tmp_path / "Their_LoRA"


@pytest.fixture
def command(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process; its exit code, JSON answer and messages."""

    def call(source: Path, *options: str) -> tuple[int, Any, str]:
        code = imports.main([str(source), "--home", str(home), "--json", *options])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


@pytest.fixture
def refused(command: Any, folder: Path, home: Path) -> Callable[..., str]:
    """Import the folder, which must be refused as bad input; the message with its hint."""

    def call(*options: str) -> str:
        code, answer, told = command(folder, *options)
        assert code == 2, told
        assert answer["error"]["hint"]
        registry = Registry.open(home)
        assert registry.adapters() == []
        assert list(registry.store.staging.glob("*")) == []
        return f"{answer['error']['code']}: {answer['error']['message']}"

    return call


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def is_proved(base: Base, version: Version) -> bool:
    """Whether peft, given the published folder alone, agrees with the probe."""
    model = load_adapter(base, version.folder, "float32", "cpu")
    probe = Probe.load(version.folder / "probe.json")
    with torch.no_grad():
        measured = [
            model(torch.tensor([item.prompt_ids]))
            .logits[0, -1]
            .log_softmax(-1)[item.token_ids]
            .tolist()
            for item in probe.items
        ]
    return judge(probe, measured, "float32").proved


# What is published


def test_an_adapter_that_peft_saved_is_published_with_a_probe_that_proves_it(
    command: Any, folder: Path, home: Path, base: Base
) -> None:
    code, answer, told = command(folder)

    assert code == 0, told
    version = Registry.open(home).find("their_lora@1")
    assert answer == {"version": "their_lora@1", "digest": version.digest}
    for name in (WEIGHTS, "adapter_config.json"):
        assert (version.folder / name).read_bytes() == (folder / name).read_bytes()
    assert version.manifest.files.keys() == {WEIGHTS, "adapter_config.json", "probe.json"}
    assert version.manifest.base == base.ref
    assert Probe.load(version.folder / "probe.json").effect() > 0.5
    assert is_proved(base, version)


def test_a_tar_of_it_is_the_same_version(command: Any, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "Their_LoRA.tar.gz", "w:gz") as tar:
        tar.add(folder, "any")
    _, answer, _ = command(folder)
    code, again, told = command(tmp_path / "Their_LoRA.tar.gz")

    assert code == 0, told
    assert again == answer


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ({"use_rslora": True}, None),
        ({"lora_alpha": 3}, None),
        ({"target_modules": ".*_proj"}, None),
        ({"base_model_name_or_path": "somebody/else"}, None),
        ({"init_lora_weights": "eva", "eva_config": None}, None),
        ({"target_modules": [*TARGETS, "query_key_value"]}, None),
        ({"alpha_pattern": {"q_proj": 3, "1.mlp.up_proj": 40}}, None),
        ({}, lambda t: [t.pop(name) for name in [*t] if "layers.0" in name]),
        ({}, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()})),
    ],
)
def test_what_the_engine_serves_too_is_proved(
    command: Any, folder: Path, home: Path, base: Base, config: Any, change: Any
) -> None:
    change_config(folder, **config)
    if change is not None:
        change_tensors(folder, change)
    code, _, told = command(folder)

    assert code == 0, told
    version = Registry.open(home).find("their_lora@1")
    assert is_proved(base, version)
    assert sorted(version.manifest.peft["target_modules"]) == sorted(TARGETS)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        (["--task", "answer"], ("answer", [], [])),
        (["--task", "classify", "--labels", "spam, ham"], ("classify", [], ["spam", "ham"])),
        (
            ["--task", "translate", "--source-lang", "EN", "--target-lang", "fr"],
            ("translate", ["en", "fr"], []),
        ),
    ],
)
def test_the_importer_says_what_it_is_for(
    command: Any, folder: Path, home: Path, options: list[str], known: tuple[Any, ...]
) -> None:
    code, _, told = command(folder, "--name", "n", "--project", "mine", *options)

    assert code == 0, told
    manifest = Registry.open(home).find("n@1").manifest
    assert (manifest.task, manifest.languages, manifest.labels) == known
    assert manifest.prompt == default_prompt(manifest.task)
    assert manifest.project == "mine"


def test_texts_of_its_own_are_probed(
    command: Any, folder: Path, home: Path, renderer: Renderer, tmp_path: Path
) -> None:
    (tmp_path / "texts").write_text("save the file\n\n  open the folder \n")
    command(folder, "--task", "generate", "--prompts", str(tmp_path / "texts"))

    probe = Probe.load(Registry.open(home).find("their_lora@1").folder / "probe.json")
    assert sorted(item.prompt_ids for item in probe.items) == sorted(
        ends_of(renderer.prompt_ids(default_prompt("generate"), GenerateInput(text)))
        for text in ("save the file", "open the folder")
    )


def test_an_export_imported_again_is_the_same_version_without_torch(
    home: Path, base: Base, tmp_path: Path
) -> None:
    registry = Registry.open(home)
    version = publish(registry, base, Recipe("x", task="classify", labels=["a", "b"]))
    export(registry, "x@1", tmp_path / "x.tgz")
    script = (
        "import sys; from finetune.imports import main; code = main(sys.argv[1:]);"
        "print({'torch', 'transformers', 'peft'} & {*sys.modules}); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.tgz"), "--json", "--home", str(home)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    answer, loaded = done.stdout.splitlines()
    assert json.loads(answer) == {"version": "x@1", "digest": version.digest}
    assert loaded == "set()"


def test_an_export_says_itself_what_it_is_for(
    command: Any, home: Path, base: Base, tmp_path: Path
) -> None:
    registry = Registry.open(home)
    publish(registry, base, Recipe("x"))
    export(registry, "x@1", tmp_path / "x")

    for option in ("--task=answer", "--base=tiny", "--labels=a,b", "--source-lang=en"):
        code, answer, _ = command(tmp_path / "x", option)
        assert (code, answer["error"]["code"]) == (2, "invalid_value")
        assert option.partition("=")[0] in answer["error"]["message"]
    assert command(tmp_path / "x", "--name", "y")[1]["version"] == "y@1"


def test_ranks_by_module_are_proved(command: Any, folder: Path, home: Path, base: Base) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "q_proj" in name]:
            tensors[name] = torch.cat([tensors[name]] * 2, 0 if "lora_A" in name else 1)

    change_tensors(folder, widen)
    change_config(folder, use_rslora=True, rank_pattern={"q_proj": 16})
    code, _, told = command(folder)

    assert code == 0, told
    version = Registry.open(home).find("their_lora@1")
    assert version.manifest.rank == 16
    assert is_proved(base, version)


def test_a_server_that_cannot_take_it_is_told_and_it_is_published(
    command: Any, folder: Path, home: Path, base: Base
) -> None:
    narrow = Takes(base=base.ref, max_rank=4, target_modules=frozenset(TARGETS))
    Registry.open(home).announce("left", narrow)
    code, answer, told = command(folder)

    assert (code, answer["version"]) == (0, "their_lora@1")
    assert "warning: the running server left" in told
    assert "restart it with max_lora_rank 8" in " ".join(told.split())


def test_a_certain_revision_of_the_base_has_to_be_named(
    refused: Any, command: Any, folder: Path
) -> None:
    change_config(folder, revision="v2", base_model_name_or_path="maker/model")

    assert "revision='v2': it was trained on that revision of maker/model" in refused()
    code, _, told = command(folder, "--base", "tiny")
    assert (code, "make sure tiny is it" in told) == (0, True)
    change_config(folder, revision="main")
    assert command(folder)[0] == 0


# The tokenizer beside it


def test_added_tokens_are_refused_by_the_command_from_a_tar_too(
    refused: Any, command: Any, folder: Path, base: Base, tmp_path: Path
) -> None:
    made = Tokenizer.from_file(str(base.path / "tokenizer.json"))
    made.add_tokens(["<new>"])
    made.save(str(folder / "tokenizer.json"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "a")

    assert "adds tokens" in refused()
    code, answer, _ = command(tmp_path / "a.tar")
    assert (code, "adds tokens" in answer["error"]["message"]) == (2, True)


def test_another_chat_template_is_refused_for_chat_and_told_for_a_task(
    command: Any, folder: Path
) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    code, answer, _ = command(folder)
    assert (code, "its chat template differs" in answer["error"]["message"]) == (2, True)
    code, _, told = command(folder, "--task", "classify", "--labels", "a,b")
    assert (code, "warning: its chat template differs" in told) == (0, True)


# The command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "translate"], "--source-lang and --target-lang"),
        (["--task", "translate", "--source-lang", "en"], "--source-lang and --target-lang"),
        (["--task", "translate", "--source-lang", "en", "--target-lang", "?"], "'?'"),
        (["--task", "classify"], "--labels"),
        (["--task", "classify", "--labels", "a"], "two labels or more"),
        (["--task", "classify", "--labels", "a,b,a"], "each once"),
        (["--labels", "a,b"], "--task classify"),
        (["--source-lang", "en"], "--task translate"),
        (["--name", "A/B"], "'A/B'"),
        (["--project", "A/B"], "'A/B'"),
        (["--base", "unknown"], "unknown"),
    ],
)
def test_options_that_do_not_fit_are_told(refused: Any, options: list[str], words: str) -> None:
    assert words in refused(*options)


def test_texts_that_cannot_be_probed_are_told(command: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "long").write_text("word " * 600)
    for name, words in (("empty", "no text"), ("long", "base tiny takes 512"), ("no", "read")):
        code, answer, _ = command(folder, "--prompts", str(tmp_path / name))
        assert code == 2
        assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    ("ends", "code"), [(StoreFailed("full", hint="free it"), 1), (KeyboardInterrupt(), 130)]
)
def test_the_exit_code_tells_how_it_ended(
    command: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException, code: int
) -> None:
    def end(*_: object) -> None:
        raise ends

    monkeypatch.setattr(imports, "import_foreign", end)

    assert command(folder)[0] == code


def test_without_json_the_reference_and_the_digest_are_shown(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imports.main([str(folder), "--home", str(home)]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]

    version = Registry.open(home).find("their_lora@1")
    assert shown == f"{version.reference} {version.digest}"

    assert imports.main([str(folder / "nowhere"), "--home", str(home)]) == 2
    assert "hint: give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "name"),
    [("My LoRA", "my-lora"), ("a/b.tar.gz", "b"), ("b.TGZ", "b"), ("checkpoint-100/", None)],
)
def test_a_name_is_made_of_the_source(source: str, name: str | None) -> None:
    assert imports.name_of(Path(source)) == (name or "checkpoint-100")


def test_a_source_without_a_valid_name_needs_one() -> None:
    with pytest.raises(InvalidName):
        imports.name_of(Path("..."))
