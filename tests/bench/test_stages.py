"""Which part of a request's way a sampled stack belongs to."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.stages import (
    OTHER,
    OURS,
    STAGES,
    VLLMS,
    Frame,
    frame_of,
    in_order,
    seconds_by_stage,
    share_of,
    stage_of,
)

ROOT = Path(__file__).parents[2]
SITE = "/venv/lib/python3.11/site-packages"
RAISED = ("<template>",)
"""No file: what jinja2 names the code that it compiles."""


def name_of(*stack: tuple[str, str]) -> str:
    """Of a stack, its innermost frame first."""
    return stage_of([frame_of({"file": file, "name": name}) for file, name in stack]).name


def test_the_innermost_frame_that_is_known_decides() -> None:
    edge = ("/home/me/modiste/service/middleware.py", "__call__")
    route = (f"{SITE}/fastapi/routing.py", "app")

    assert name_of(("/home/me/modiste/service/auth.py", "caller"), edge) == "auth"
    assert name_of(route, edge) == "parse"
    assert name_of(edge, route) == "edge"


def test_what_a_library_does_is_its_callers() -> None:
    dumps = ("/usr/lib/python3.11/json/__init__.py", "dumps")
    execute = (f"{SITE}/sqlalchemy/engine/base.py", "execute")

    assert name_of(dumps, ("/m/service/log_lines.py", "format")) == "log"
    assert name_of(execute, ("/m/service/limiting/windows.py", "_run")) == "limits"
    assert name_of(dumps, (f"{SITE}/vllm/entrypoints/openai/chat_completion/serving.py", "x")) == (
        "serialise"
    )


def test_the_closest_place_has_a_frame() -> None:
    assert stage_of([Frame("vllm/v1/engine/detokenizer.py", "update")]).name == "detokenise"
    assert stage_of([Frame("vllm/v1/engine/async_llm.py", "generate")]).name == "engine"
    assert stage_of([Frame("service/watchdog.py", "_noted")]).name == "metering"
    assert stage_of([Frame("service/watchdog.py", "Pulse._noted")]).name == "metering"
    assert stage_of([Frame("service/watchdog.py", "run")]).name == "beside requests"
    assert stage_of([Frame("service/protocol.py", "_Joining.write")]).whose == VLLMS
    assert stage_of([Frame("service/protocol.py", "BoundedProtocol.on_url")]).whose == OURS


def test_a_checkout_may_lie_in_a_folder_that_is_called_as_a_package() -> None:
    assert frame_of({"file": "/srv/service/it/service/auth.py", "name": "x"}).file == (
        "service/auth.py"
    )


def test_a_stack_that_nobody_knows_is_not_ours() -> None:
    assert stage_of([]) is OTHER
    assert OTHER.whose == VLLMS


@pytest.mark.parametrize("path", sorted(ROOT.glob("service/**/*.py")), ids=lambda path: path.name)
def test_every_module_of_the_server_is_ours(path: Path) -> None:
    assert stage_of([frame_of({"file": str(path), "name": "x"})]).whose == OURS


@pytest.mark.parametrize("place", [place for stage in STAGES for place in stage.places])
def test_every_place_exists(place: str) -> None:
    if place in RAISED:
        return
    path, _, function = place.partition(":")
    package = path.split("/")[0]
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))).parent
    found = list(folder.glob(f"{path.rstrip('/')}*"))
    assert found
    assert not function or f"def {function}(" in found[0].read_text()


def profile_of(*threads: tuple[list[list[int]], list[float]]) -> dict[str, Any]:
    return {
        "shared": {
            "frames": [
                {"name": "__call__", "file": "/m/service/middleware.py", "line": 1},
                {"name": "caller", "file": "/m/service/auth.py", "line": 2},
                {"name": "generate", "file": f"{SITE}/vllm/v1/engine/async_llm.py", "line": 3},
            ]
        },
        "profiles": [{"samples": samples, "weights": weights} for samples, weights in threads],
    }


def test_samples_of_all_threads_add_up_by_stage() -> None:
    found = seconds_by_stage(
        profile_of(([[0, 1], [0], [0, 2]], [0.25, 0.25, 1.0]), ([[1], [2]], [0.25, 0.25]))
    )

    assert {stage.name: seconds for stage, seconds in found.items()} == {
        "auth": 0.5, "edge": 0.25, "engine": 1.25,
    }  # fmt: skip
    assert share_of(found, OURS) == pytest.approx(0.75 / 2)
    shares = dict(in_order(found))
    assert sum(shares.values()) == pytest.approx(1)
    assert [stage.name for stage, share in in_order(found) if share] == ["edge", "auth", "engine"]
