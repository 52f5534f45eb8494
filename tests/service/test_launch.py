"""What forbids a start, and what vLLM is started with."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from adapters.bases import Base
from adapters.home import Home
from adapters.registry import Registry
from bench.servers import free_port
from service import capacity, cli, doctor, launch
from service.settings import Settings
from tests.adapters.parcels import A, B, draft, parcel
from tests.made import add_tiny_base
from tests.postgres import Postgres

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry.open(tmp_path_factory.mktemp("home"))
    add_tiny_base(registry)
    return registry


@pytest.fixture
def base(registry: Registry) -> Base:
    return registry.base()


def test_a_plain_start_has_no_problems(base: Base) -> None:
    assert launch.problems(Settings(port=free_port()), base, keys=False) == []


@pytest.mark.parametrize("name", sorted(launch.FORBIDDEN_ENVIRONMENT))
def test_an_environment_that_breaks_the_promise_forbids_the_start(
    base: Base, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")

    assert name in launch.problems(Settings(port=free_port()), base, keys=False)[0]


@pytest.mark.parametrize(
    "argument", ["--api-server-count=2", "--lora_modules", "--api-key", "--middlew", "--config"]
)
def test_an_argument_that_breaks_the_promise_forbids_the_start(base: Base, argument: str) -> None:
    settings = Settings(port=free_port(), vllm_args=[argument])

    assert len(launch.problems(settings, base, keys=False)) == 1


def test_a_public_address_needs_keys(base: Base) -> None:
    settings = Settings(host="0.0.0.0", port=free_port())

    assert "API keys" in launch.problems(settings, base, keys=False)[0]
    assert launch.problems(settings, base, keys=True) == []


def test_a_port_in_use_and_a_base_without_adapters_are_told_together(base: Base) -> None:
    plain = base.model_copy(update={"lora": False, "lora_reason": "vLLM has none for it"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = launch.problems(Settings(port=taken.getsockname()[1]), plain, keys=False)

    assert any("vLLM has none for it" in problem for problem in found)
    assert any("--port" in problem for problem in found)


def test_a_base_that_changed_on_disk_is_not_served(tmp_path: Path) -> None:
    base = add_tiny_base(Registry.open(tmp_path))
    (base.path / "chat_template.jinja").write_text("{{ messages }}")

    assert "chat_template" in launch.problems(Settings(port=free_port()), base, keys=False)[0]


def test_the_rank_follows_the_published_versions_that_can_be_served(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    assert capacity.lora_rank(Settings(), registry) == 16
    for rank in (24, 100):
        folder = parcel(tmp_path / str(rank), r=rank)
        tensors = {A: np.ones((rank, 8), np.float32), B: np.ones((8, rank), np.float32)}
        save_file(tensors, folder / "adapter_model.safetensors")
        registry.publish(folder, draft(folder))

    assert capacity.lora_rank(Settings(), registry) == 128
    registry.quarantine(registry.find("x@2"), "altered")
    assert capacity.lora_rank(Settings(), registry) == 32
    assert capacity.lora_rank(Settings(max_lora_rank=64), registry) == 64


def test_vllm_gets_its_priorities_and_limits(base: Base) -> None:
    settings = Settings(vllm_args=["--seed", "1"])
    arguments = launch.vllm_arguments(settings, base, capacity.Capacity(16, 3, 7))

    assert arguments[0] == str(base.path)
    for pair in (
        ("--scheduling-policy", "priority"), ("--seed", "1"), ("--max-loras", "3"),
        ("--max-cpu-loras", "7"), ("--max-lora-rank", "16"),
    ):  # fmt: skip
        assert arguments[arguments.index(pair[0]) + 1] == pair[1]
    assert "lm_head" not in arguments


@pytest.mark.parametrize(
    ("vllm_args", "ours"),
    [
        ([], True), (["--seed", "1"], True),
        (["--structured-outputs-config.backend", "guidance"], False),
        (['--structured_outputs_config={"backend": "auto"}'], False),
    ],
)  # fmt: skip
def test_the_compiler_of_grammars_is_chosen_unless_the_operator_does(
    base: Base, vllm_args: list[str], ours: bool
) -> None:
    settings = Settings(vllm_args=vllm_args, grammar_wait_s=2)

    arguments = launch.vllm_arguments(settings, base, capacity.Capacity(16, 3, 7))

    assert ("xgrammar" in arguments) == ours
    limit = launch.vllm_environment(settings, base).get("VLLM_REGEX_COMPILATION_TIMEOUT_S")
    assert limit == ("24" if ours else None)


def test_other_plugins_of_vllm_stay_on(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")

    assert launch.vllm_environment(Settings(), base)["VLLM_PLUGINS"] == "theirs,modiste"


@pytest.mark.parametrize(
    ("cores", "parameters", "bind", "threads"),
    [
        ({0, 1}, 135_000_000, "0,1", None), ({0, 1}, 100_000, "nobind", "1"),
        ({3}, 135_000_000, "3", None), ({0, 1, 2, 3}, 100_000, None, None),
    ],
)  # fmt: skip
def test_on_few_cores_a_tiny_model_has_one_thread_and_others_all(
    base: Base, monkeypatch: pytest.MonkeyPatch, cores: set[int], parameters: int,
    bind: str | None, threads: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cores)
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    told = launch.vllm_environment(Settings(), base.model_copy(update={"parameters": parameters}))

    assert told.get("VLLM_CPU_OMP_THREADS_BIND") == bind
    assert told.get("OMP_NUM_THREADS") == threads


def test_the_command_promotes_and_shows(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    folder = parcel(tmp_path / "p")
    registry.publish(folder, draft(folder))
    run = CliRunner()
    home = ["--home", str(registry.home.root)]

    done = run.invoke(cli.app, ["adapters", "promote", "x@1", "--why", "test", *home])
    shown = run.invoke(cli.app, ["adapters", "list", "--json", *home])

    assert done.exit_code == 0, done.output
    assert json.loads(shown.output) == [
        {"name": "x", "task": "generate", "versions": 1, "aliases": {"production": 1}}
    ]
    assert registry.alias_history("x")[0].why == "test"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["adapters", "promote", "nobody@1"], "nobody"),
        (["adapters", "show", "../x"], "valid name"),
        (["serve", "--base", "nobody"], "modiste base add"),
        (["serve", "--port", "99999"], "port"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_to_do(
    tmp_path: Path, arguments: list[str], word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(cli.app, [*arguments, "--home", str(tmp_path)])

    assert result.exit_code == 2
    assert word in " ".join((result.output + capfd.readouterr().err).split())


def test_the_doctor_finds_what_is_wrong(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")

    findings = {f.what: f for f in doctor.collect(registry.home)}
    assert findings["VLLM_SERVER_DEV_MODE"].state == "wrong"
    assert findings["modiste serve"].state == "wrong"
    assert findings["base models"].found == "tiny"
    assert findings["vllm"].state == "ok"
    assert "store" not in findings


def test_the_doctor_shows_the_database_and_hides_its_password(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.ready().replace("postgres:@", "postgres:hunter2@")  # nobody asks for it
    monkeypatch.setenv("MODISTE_DATABASE_URL", address)
    findings = {f.what: f for f in doctor.collect(Home(tmp_path))}
    assert findings["database"].state == "ok"
    assert "postgres:***@" in findings["database"].found

    monkeypatch.setenv("MODISTE_DATABASE_URL", "postgresql://ann:hunter2@127.0.0.1:1/x")
    away = {f.what: f for f in doctor.collect(Home(tmp_path))}["database"]
    assert away.state == "wrong"
    assert "database_url" in away.remedy
    assert "hunter2" not in f"{findings} {away}"


def test_the_doctor_asks_a_store_elsewhere(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_STORE_URL", f"file://{tmp_path}/store")
    [before] = doctor._store(registry.home)
    (tmp_path / "store").mkdir()
    [after] = doctor._store(registry.home)

    assert (before.state, before.remedy) == (
        "wrong", "check store_url; make the bucket or mount the folder",
    )  # fmt: skip
    assert (after.state, after.found) == (
        "ok", f"file://{tmp_path}/store, of which 10 GiB are kept here",
    )  # fmt: skip
