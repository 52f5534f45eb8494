"""The command `modiste`: what it prints where, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from adapters.compatibility import Takes
from adapters.registry import Registry
from adapters.rules import Rule
from service import ask, cli
from tests.adapters.parcels import BASE, draft, parcel, registry_with, verdict


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`x` with two versions, the first live."""
    registry = registry_with(tmp_path, 2)
    registry.promote("x@1")
    return registry


@pytest.fixture
def modiste(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run the command in this process; its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.app([*arguments], prog_name="modiste")
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    monkeypatch.setenv("MODISTE_HOME", str(registry.home.root))
    return run


def test_show_prints_what_is_known_of_each_version(modiste: Any, registry: Registry) -> None:
    registry.quarantine(registry.find("x@2"), "[altered] files")
    code, text, _ = modiste("adapters", "show", "x")

    assert code == 0
    assert "[altered] files" in text  # brackets are no markup
    assert text.index("x@1") < text.index("production") < text.index("x@2")


def test_show_as_json_is_the_manifest_with_its_state(modiste: Any, registry: Registry) -> None:
    _, text, _ = modiste("adapters", "show", "x@production", "--json")

    [shown] = json.loads(text)
    version = registry.find("x@1")
    assert (shown["digest"], shown["state"]) == (version.digest, "ready")
    assert shown["files"] == version.manifest.files


def test_promote_moves_the_alias_and_says_where(modiste: Any, registry: Registry) -> None:
    code, text, _ = modiste("adapters", "promote", "x@2", "--alias", "staging")

    digest = registry.find("x@2").digest
    assert (code, text.strip()) == (0, f"x@staging -> x@2 {digest}")
    assert registry.aliases("x") == {"production": 1, "staging": 2}


def test_a_rollback_is_a_promotion(modiste: Any, registry: Registry) -> None:
    modiste("adapters", "promote", "x@2")
    modiste("adapters", "promote", "x@1", "--why", "complaints")

    assert registry.aliases("x") == {"production": 1}
    assert registry.alias_history("x")[-1].why == "complaints"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adapters", "show", "y"), ["'y'", "modiste adapters list"]),
        (("adapters", "show", "x@9"), ["version 9", "modiste adapters show x"]),
        (("adapters", "show", "x@staging"), ["alias 'staging'", "promote"]),
        (("adapters", "promote", "x@2", "--alias", "7"), ["'7'", "numbers name versions"]),
        (("adapters", "promote", "x@2", "--alias", "A/B"), ["'A/B'", "a-z"]),
        (("adapters", "verify", "../etc"), ["'../etc'", "a-z"]),
        (("adapters", "promote"), ["Missing argument"]),
        (("adapters", "nonsense"), ["nonsense"]),
    ],
)
def test_bad_input_ends_with_2_and_a_remedy_on_standard_error(
    modiste: Any, registry: Registry, arguments: tuple[str, ...], words: list[str]
) -> None:
    code, text, errors = modiste(*arguments)

    assert (code, text) == (2, "")
    assert [word for word in words if word not in " ".join(errors.split())] == []
    assert "Traceback" not in errors
    assert registry.aliases("x") == {"production": 1}


def test_a_quarantined_version_is_not_promoted_and_the_reason_is_told(
    modiste: Any, registry: Registry
) -> None:
    registry.quarantine(registry.find("x@2"), "differs by 3 nats")
    code, _, errors = modiste("adapters", "promote", "x@2")

    assert code == 2
    assert "differs by 3 nats" in errors


def test_verify_tells_an_altered_file_from_a_missing_one(modiste: Any, registry: Registry) -> None:
    assert modiste("adapters", "verify", "x@1")[:2] == (
        0, f"x@1 {registry.find('x@1').digest} is whole\n",
    )  # fmt: skip
    path = registry.find("x@1").folder / "adapter_model.safetensors"
    path.write_bytes(b"altered")
    code, _, errors = modiste("adapters", "verify", "x@1")
    assert (code, "was altered" in errors) == (2, True)
    path.unlink()
    code, _, errors = modiste("adapters", "verify", "x@1")
    assert (code, "restore the version" in errors) == (1, True)  # may pass: the store is away


def test_every_mistake_in_the_settings_is_told(modiste: Any, registry: Registry) -> None:
    registry.home.settings.write_text("prot: 1\nmax_loras: many\n")
    code, _, errors = modiste("serve", "--print", "env")

    assert code == 2
    assert errors.count("error:") == 2
    assert "prot: unknown setting" in errors
    assert "max_loras:" in errors


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a shell script in the interpreter's place; its arguments end up in a file."""

    def make(script: str) -> Path:
        told = tmp_path / "arguments"
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {told}\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        return told

    return make


@pytest.mark.parametrize(
    ("script", "code"),
    # not -INT: in the background of a shell it is ignored
    [("exit 0", 0), ("exit 1", 1), ("exit 2", 2), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
def test_a_child_commands_end_is_ours(child: Any, script: str, code: int) -> None:
    told = child(script)
    with pytest.raises(SystemExit) as ended:
        cli.app(["base", "add", "some/model", "--name", "n", "--help"], prog_name="modiste")

    assert ended.value.code == code
    assert told.read_text().split() == [
        "-m", "finetune.bases", "add", "some/model", "--name", "n", "--help",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("import", "finetune.imports"), ("merge", "finetune.merge"), ("bake", "finetune.bake"),
    ],
)  # fmt: skip
def test_what_needs_torch_runs_in_a_child_with_all_its_options(
    child: Any, command: str, module: str
) -> None:
    told = child("exit 0")
    with pytest.raises(SystemExit):
        cli.app(["adapters", command, "x@1", "--json", "--weights=-1,2"], prog_name="modiste")

    assert told.read_text().split() == ["-m", module, "x@1", "--json", "--weights=-1,2"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_child_that_is_stopped_has_time_to_put_things_away(tmp_path: Path, how: int) -> None:
    done = tmp_path / "done"
    (tmp_path / "slow.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n    print('up', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"    time.sleep(1)\n    pathlib.Path({str(done)!r}).touch()\n    sys.exit(130)\n"
    )
    script = (  # what is started in the background of a shell ignores interrupts
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from service.console import run_child; run_child('slow', [])"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does
        else:
            parent.terminate()  # as a container's end does

        parent.wait(30)
    assert done.exists()


def test_printing_needs_no_heavy_library() -> None:
    script = "import sys, service.cli; print({'torch', 'vllm', 'transformers'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"
    assert isinstance(cli.app, typer.Typer)


def test_a_version_is_retired_and_stands_in_the_history(modiste: Any, registry: Registry) -> None:
    code, text, _ = modiste("adapters", "retire", "x@2", "--why", "rude")

    assert code == 0, text
    assert "x@2 is retired" in text
    assert registry.find("x@2").state == "retired"
    shown = modiste("adapters", "history", "x")[1]
    assert "(retired)" in shown
    assert "rude" in shown
    assert "by" in modiste("adapters", "show", "x@2")[1]
    for reference in ("x@2", "x@1", "x"):
        code, _, complaint = modiste("adapters", "retire", reference)
        assert code != 0
        assert complaint


def test_rollback_and_history(modiste: Any, registry: Registry) -> None:
    registry.promote("x@2", who="ann", why="[better]")
    code, text, _ = modiste("adapters", "rollback", "x", "--why", "worse")

    assert code == 0
    assert text.startswith("x@production -> x@1 sha256:")
    _, shown, _ = modiste("adapters", "history", "x")
    assert "[better]" in shown
    assert "1 (rollback)" in shown
    _, printed, _ = modiste("adapters", "history", "x", "--json")
    assert [move["to_number"] for move in json.loads(printed)] == [1, 2, 1]
    code, _, complaint = modiste("adapters", "rollback", "x")
    assert code == 2
    assert "no version before x@1" in complaint


def test_a_canary_is_started_and_ended(modiste: Any, registry: Registry) -> None:
    code, text, _ = modiste("adapters", "canary", "x@2", "--percent", "12.5")
    ends = "it ends by `modiste adapters end-canary`"
    assert (code, text) == (0, f"x@production gives 12.5 % to x@2; {ends}\n")
    _, shown, _ = modiste("adapters", "history", "x")
    assert "2 (canary, 12.5 %)" in shown

    code, text, _ = modiste("adapters", "end-canary", "x", "--promote")
    assert (code, registry.aliases("x")) == (0, {"production": 2})
    code, _, complaint = modiste("adapters", "end-canary", "x", "--drop")
    assert code == 2
    assert "no canary" in complaint


def test_a_canary_may_end_by_rule_and_answers_are_scored(modiste: Any, registry: Registry) -> None:
    start = ("adapters", "canary", "x@2", "--percent", "10", "--rule")
    code, text, _ = modiste(*start, "promote_after=500", "--rule", "max_latency_ratio=none")
    assert (code, text.endswith("it ends by rule\n")) == (0, True)
    rule = registry.trials()["x", "production"].rule
    assert rule == Rule(promote_after=500, max_latency_ratio=None)

    code, text, _ = modiste("adapters", "score", "x@2", "0.5", "--request-id", "r-1")
    assert (code, text) == (0, "x@2 scored 0.5\n")
    assert registry.trials()["x", "production"].sides[2].mean_score == 0.5

    for wrong in ("promote=5", "promote_after", "promote_after=1"):
        code, _, complaint = modiste(*start, wrong)
        assert code == 2
        assert f"--rule {wrong}" in complaint


def test_force_goes_past_a_server_that_cannot_take_the_version(
    modiste: Any, registry: Registry
) -> None:
    registry.announce("left", Takes(base=BASE, max_rank=1, target_modules=frozenset({"q_proj"})))

    for command in (("promote", "x@2"), ("canary", "x@2", "--percent", "10")):
        code, _, complaint = modiste("adapters", *command)
        assert code == 2
        assert "left (process 0) can't take x@2" in complaint
        assert "max_lora_rank 8" in complaint
        assert modiste("adapters", *command, "--force")[0] == 0
        registry.promote("x@1", force=True)


def test_a_failed_gate_is_shown_and_forced_only_with_a_reason(
    modiste: Any, registry: Registry
) -> None:
    made = parcel(registry.home.root / "made-failed", 7)
    registry.publish(made, draft(made, gate=verdict(passed=False)))
    _, shown, _ = modiste("adapters", "show", "x@3")
    assert "failed: chrf gained -1 at least" in shown
    modiste("adapters", "canary", "x@3", "--percent", "10")

    for command in (("promote", "x@3"), ("end-canary", "x", "--promote")):
        code, _, complaint = modiste("adapters", *command, "--why", "fine")
        assert (code, "gate failed: chrf gained -1" in complaint) == (2, True)
        code, _, complaint = modiste("adapters", *command, "--force")
        assert (code, "--why TEXT" in complaint) == (2, True)
    assert registry.aliases("x") == {"production": 1}

    assert modiste("adapters", "end-canary", "x", "--promote", "--force", "--why", "ok")[0] == 0
    assert modiste("adapters", "promote", "x@3", "--alias", "b", "--force", "--why", "go")[0] == 0
    assert registry.aliases("x") == {"production": 3, "b": 3}
    _, printed, _ = modiste("adapters", "history", "x", "--json")
    forced = [move["why"] for move in json.loads(printed)][-2:]
    assert forced == ["forced past its gate: ok", "forced past its gate: go"]


def test_gc_tells_what_goes_and_then_removes_it(modiste: Any, registry: Registry) -> None:
    registry.promote("x@2")
    registry.promote("x@2", "staging")
    registry.publish(*_another(registry, 3))
    arguments = ("adapters", "gc", "--keep", "0", "--older-than-days", "0")
    _, would, _ = modiste(*arguments, "--dry-run")
    assert "would remove x@3" in would
    assert registry.find("x@3").state == "ready"

    _, text, _ = modiste(*arguments, "--json")

    assert json.loads(text)["versions"] == ["x@3"]  # x@1 is what production would roll back to
    code, _, complaint = modiste("adapters", "verify", "x@3")
    assert code == 2
    assert "was removed" in complaint


def _another(registry: Registry, number: int) -> tuple[Path, Any]:
    folder = parcel(registry.home.root / f"made-{number}", number)
    return folder, draft(folder)


def test_diff_shows_fields_and_answers_side_by_side(
    modiste: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json={"results": [{"text": f"by {asked[-1]['model']}"}]})

    class Client(httpx.Client):
        def __init__(self, **options: Any) -> None:
            super().__init__(transport=httpx.MockTransport(answer), **options)

    monkeypatch.setattr(ask.httpx, "Client", Client)
    registry.publish(*_with_more(registry))
    code, text, _ = modiste("adapters", "diff", "x@1", "x@3", "--ask", "[hello]")

    assert code == 0
    assert "peft.lora_alpha" in text
    assert "[hello]" in text
    assert "by x@3" in text
    assert asked[0] == {"prompt": "[hello]", "temperature": 0.0, "max_tokens": 128, "model": "x@1"}


def test_diff_without_a_server_says_so(modiste: Any) -> None:
    code, _, complaint = modiste(
        "adapters", "diff", "x@1", "x@2", "--ask", "a", "--server", "http://127.0.0.1:9"
    )

    assert code == 1
    assert "--server" in complaint


def _with_more(registry: Registry) -> tuple[Path, Any]:
    folder = parcel(registry.home.root / "made-more", 9, lora_alpha=16)
    return folder, draft(folder)
