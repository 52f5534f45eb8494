"""Settings: where they come from, and that mistakes are told."""

import re
from pathlib import Path

import pytest

from adapters.home import Home
from service.settings import Settings, SettingsError
from service.settings_sources import load_settings


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "modiste.yaml").write_text("port: 1001\nmax_loras: 4\nbase: filed\n")
    environment = {"MODISTE_PORT": "1002", "MODISTE_MAX_LORAS": "5", "MODISTE_HOME": "/x"}

    settings = load_settings(Home(tmp_path), {"port": 1003, "host": None}, environment)

    assert (settings.port, settings.max_loras, settings.base) == (1003, 5, "filed")
    assert settings.host == "127.0.0.1"


def test_all_mistakes_are_told_at_once_with_the_known_keys(tmp_path: Path) -> None:
    (tmp_path / "modiste.yaml").write_text("prot: 1\nport: 99999\nmax_lora_rank: 7\n")

    with pytest.raises(SettingsError) as caught:
        load_settings(Home(tmp_path), {}, {"MODISTE_NOPE": "1"})

    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for word in ("prot: unknown", "nope: unknown", "port:", "max_lora_rank: must be one of 8"):
        assert word in problems


@pytest.mark.parametrize("text", ["- a\n", "a: [\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "modiste.yaml").write_text(text)

    with pytest.raises(SettingsError):
        load_settings(Home(tmp_path), {}, {})


def test_lists_come_from_the_environment_by_words(tmp_path: Path) -> None:
    environment = {"MODISTE_VLLM_ARGS": "--max-num-seqs 8"}

    assert load_settings(Home(tmp_path), {}, environment).vllm_args == ["--max-num-seqs", "8"]


def test_keys_come_from_a_file_and_short_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a-key-of-sixteen-characters\n")
    assert Settings(api_keys_file=path).keys() == ["a-key-of-sixteen-characters"]

    path.write_text("short\n")
    with pytest.raises(SettingsError):
        Settings(api_keys_file=path).keys()
    with pytest.raises(SettingsError):
        Settings(api_keys_file=tmp_path / "missing").keys()


def test_the_head_is_never_adapted() -> None:
    with pytest.raises(ValueError, match="crash"):
        Settings(lora_target_modules=["q_proj", "lm_head"])


@pytest.mark.parametrize(
    ("word", "unit"), [("seconds", "_s"), ("bytes", "_bytes"), ("GiB", "_gib")]
)
def test_a_quantity_has_its_unit_in_its_name(word: str, unit: str) -> None:
    fields = Settings.model_fields.items()
    named = [name for name, field in fields if re.search(rf"\b{word}\b", field.description or "")]

    assert named
    assert [name for name in named if not name.endswith(unit)] == []


def test_values_of_the_environment_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Home(tmp_path), {}, {"MODISTE_PORT": "", "MODISTE_ALIAS_POLL_S": "0"})

    assert [problem.split(":")[0] for problem in caught.value.problems] == ["port", "alias_poll_s"]


def test_what_a_key_is_never_appears_in_a_message(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("hunter2\n")
    for values in (
        {"api_keys": ["hunter2"]}, {"api_keys_file": tmp_path / "keys"},
        {"store_url": "s3://id:hunter2@bucket"},
    ):  # fmt: skip
        with pytest.raises(SettingsError) as caught:
            load_settings(Home(tmp_path), values, {}).keys()
        assert "hunter2" not in str(caught.value)


def test_a_database_is_checked_with_the_other_settings_and_its_password_is_never_shown(
    tmp_path: Path,
) -> None:
    address = "postgresql://ann:hunter2@db/modiste"
    settings = load_settings(Home(tmp_path), {}, {"MODISTE_DATABASE_URL": address})
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"

    wrong = {"MODISTE_DATABASE_URL": address.replace("postgresql", "mysql"), "MODISTE_PORT": "0"}
    with pytest.raises(SettingsError) as caught:
        load_settings(Home(tmp_path), {}, wrong)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["port", "database_url"]
    assert "mysql, which is not supported; write postgresql://" in caught.value.problems[1]
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_told_without_its_lines(tmp_path: Path) -> None:
    (tmp_path / "modiste.yaml").write_text("database_url: postgresql://ann:hunter2@db/x: y\n")

    with pytest.raises(SettingsError, match="line 1: not valid YAML") as caught:
        load_settings(Home(tmp_path), {}, {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318",
        "grpc://collector:4317",
        "http://me:secret@collector",
        "http://c?token=x",
        "",
    ],
)
def test_a_collectors_address_is_a_url_without_secrets(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Home(tmp_path), {"otlp_endpoint": endpoint}, {})

    (problem,) = caught.value.problems
    assert problem.startswith("otlp_endpoint: must")
    assert "secret" not in problem
    assert Settings(otlp_endpoint="https://collector:4318/base").otlp_endpoint is not None
