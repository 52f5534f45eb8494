"""What users can set, see or meet is in the docs."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from adapters.audit import Act
from adapters.compatibility import PLAIN_STARTS, REFUSED
from adapters.errors import AdapterError
from finetune.data_config import Data
from finetune.findings import CODES
from finetune.options import Lora, Training
from finetune.sweep_config import Sweep
from service.cli import app
from service.errors import ServiceError
from service.settings import Settings
from tests.metrics import exported

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def _tree(kind: type) -> list[type]:
    return [cls for sub in kind.__subclasses__() for cls in (sub, *_tree(sub))]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert re.search(rf"\| `{name}` \|.*{re.escape(description)}", REFERENCE)


@pytest.mark.parametrize("part", [Lora, Training, Sweep])
def test_every_key_of_a_recipe_on_training_and_sweeps_is_documented(part: type[BaseModel]) -> None:
    for name, field in part.model_fields.items():
        key = f"{part.__name__.lower()}.{name}"
        assert field.description, key
        assert re.search(rf"\| `{key}` \|.*{re.escape(field.description)}", REFERENCE), key


def test_the_table_of_metrics_is_the_codes() -> None:
    table = REFERENCE[REFERENCE.index("## Metrics") : REFERENCE.index("## Error codes")]
    rows = re.findall(r"^\| `([a-z_:]+)` \| (.*?) \| (.*) \|$", table, re.MULTILINE)
    told = {
        # values may stand behind the last label's name
        name: (set(re.findall(r"\w+", labels.partition(":")[0])), what)
        for name, labels, what in rows
    }

    assert told == {metric.name: (set(metric.labels), metric.help) for metric in exported()}
    assert len(rows) == len(told)


def test_every_command_is_documented() -> None:
    names = [f"modiste {command.callback.__name__}" for command in app.registered_commands]
    for group in app.registered_groups:
        names += [
            f"modiste {group.name} {c.name}" for c in group.typer_instance.registered_commands
        ]

    assert len(names) >= 10
    assert [name for name in names if not re.search(rf"\| `{name}[` ]", REFERENCE)] == []


def test_every_error_code_is_documented() -> None:
    codes = {cls.code for cls in (AdapterError, *_tree(AdapterError))}
    codes |= {cls.default_code for cls in (ServiceError, *_tree(ServiceError))}
    for path in (ROOT / "finetune").rglob("*.py"):  # read, not imported: torch is slow
        codes |= set(re.findall(r'^    code = "([a-z_]+)"', path.read_text(), re.MULTILINE))
    assert "training_diverged" in codes

    assert [code for code in sorted(codes) if f"| `{code}` |" not in REFERENCE] == []


def test_every_finding_and_key_of_data_is_documented() -> None:
    for code, (level, what) in CODES.items():
        assert f"| `{code}` | {level} | {what} |" in REFERENCE
    for name, field in Data.model_fields.items():
        assert re.search(rf"\| `{name}` \|.*{re.escape(field.description or name)}", REFERENCE)


def test_every_option_of_peft_that_is_refused_is_documented() -> None:
    table = REFERENCE[REFERENCE.index("## Adapters that are served") :]

    assert [key for key in REFUSED if f"`{key}`" not in table] == []
    assert [start for start in PLAIN_STARTS if f"`{start}`" not in table] == []


def test_every_code_that_a_module_names_is_documented() -> None:
    named = set()
    for path in (ROOT / "service").rglob("*.py"):
        named |= set(re.findall(r'\bcode="([a-z_]+)"', path.read_text()))

    pages = REFERENCE + (ROOT / "docs" / "api.md").read_text()  # warnings stand with their route
    assert [code for code in sorted(named) if f"`{code}`" not in pages] == []


def test_every_route_is_documented() -> None:
    api = (ROOT / "docs" / "api.md").read_text()
    routes = set()
    for path in (ROOT / "service" / "routes").glob("*.py"):
        found = re.findall(r'@router\.(get|post|delete|put)\(\s*"([^"]+)"', path.read_text())
        routes |= {f"{method.upper()} {route.replace(':path', '')}" for method, route in found}

    assert len(routes) >= 14
    assert [route for route in sorted(routes) if f"`{route}`" not in api] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_pages_speak_of_the_project_alone(page: Path) -> None:
    assert re.findall(r"/work\b|/tmp/w\b|(?i:\bissue #?\d|\bsession \d)", page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_act_of_the_audit_log_is_documented() -> None:
    api = (ROOT / "docs" / "api.md").read_text()
    table = api[api.index("## Audit log") :]

    assert [act.value for act in Act if f"`{act.value}`" not in table] == []
