"""The bill of materials has what runs, and its form is CycloneDX's."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from service import cli, sbom


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("sbom") / "sbom.json"
    done = CliRunner().invoke(cli.app, ["sbom", "--output", str(place)])
    assert done.exit_code == 0, done.output
    return place.read_text()


@pytest.fixture(scope="module")
def bom(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


def test_it_follows_the_schema(text: str) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"bookshelf"', 1)) is not None


def test_it_names_what_is_installed_in_the_version_that_is(bom: dict[str, Any]) -> None:
    parts = {part["name"]: part for part in bom["components"]}
    assert bom["metadata"]["component"]["name"] == "modiste"
    for name in ("vllm", "torch", "transformers", "fastapi", "sqlalchemy", "uvicorn"):
        assert parts[name]["version"] == version(name)
    assert parts["fastapi"]["purl"] == f"pkg:pypi/fastapi@{version('fastapi')}"
    assert parts["fastapi"]["licenses"] == [{"license": {"id": "MIT"}}]


def test_tools_of_developers_are_left_out(bom: dict[str, Any]) -> None:
    names = {part["name"] for part in bom["components"]}
    assert names.isdisjoint({"ruff", "mypy", "moto", "hypothesis", "modiste"})


def test_it_says_who_needs_whom(bom: dict[str, Any]) -> None:
    needs = {one["ref"]: set(one.get("dependsOn", ())) for one in bom["dependencies"]}
    starlette = f"pkg:pypi/starlette@{version('starlette')}"
    assert starlette in needs[f"pkg:pypi/fastapi@{version('fastapi')}"]
    known = {part["bom-ref"] for part in bom["components"]}
    assert all(others <= known for others in needs.values())


def test_what_an_extra_brings_is_found_and_what_is_not_installed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def package(name: str, *lines: str) -> None:
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *lines]
        (folder / "METADATA").write_text("\n".join(metadata) + "\n")

    package(
        "Top_Of", "Requires-Dist: mid[more]", "Requires-Dist: absent", "License: MIT",
        'Requires-Dist: old; python_version < "3"',
    )  # fmt: skip
    package("mid", 'Requires-Dist: deep; extra == "more"', 'Requires-Dist: side; extra == "x"')
    for name in ("deep", "side", "old"):
        package(name, "Requires-Dist: Top-Of")
    monkeypatch.syspath_prepend(str(tmp_path))

    found, needs = sbom.installed("top-of")
    assert found.keys() == {"top-of", "mid", "deep"}
    assert needs == {"top-of": {"mid"}, "mid": {"deep"}, "deep": {"top-of"}}
