"""Code that runs under limits: what passes, and what is stopped."""

from pathlib import Path

import pytest

from finetune import sandbox
from finetune.sandbox import code_in, passes, statements

DOUBLE = "def double(n):\n    return 2 * n"
MODULE = """
import asyncio, dataclasses, os
@dataclasses.dataclass
class Pair:
    one: "int"
async def answer():
    return Pair(os.getcwd() != "/")
"""


def test_code_passes_when_all_its_asserts_hold_and_only_then() -> None:
    assert passes(
        [
            (DOUBLE, "assert double(2) == 4\nassert double('a') == 'aa'"),
            (DOUBLE, "assert double(2) == 4\nassert double(2) == 5"),
            ("def double(n:", "assert True"),
            (f"{DOUBLE}\nimport sys\nsys.exit(0)", "assert double(2) == 5"),
            (f"{DOUBLE}\nimport os\nos._exit(0)", "assert double(2) == 5"),
            (MODULE, "assert asyncio.run(answer()) == Pair(True)"),
            ("if __name__ == '__main__':\n    1 / 0", "assert True"),
        ]
    ) == [True, False, False, False, False, True, True]


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.remove({path!r})", "open({path!r}, 'w')", "open({path!r}, 'ab')",
        "open('new', 'w')", "import shutil; shutil.rmtree({folder!r})",
        "import os; os.fork()", "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')", "import ctypes; ctypes.CDLL(None)",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
        "import numpy", "b = bytes(600 * 1024**2)", "import os; os.environ['HOME']",
        "fs = [open({path!r}) for _ in range(40)]", "input()",
    ],
)  # fmt: skip
def test_code_is_refused_what_a_mistake_could_harm(code: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    code = code.format(path=str(kept), folder=str(tmp_path))
    caught = f"try:\n    {code}\nexcept BaseException:\n    refused = True"

    assert passes([(caught, "assert refused"), (code, "assert True")]) == [True, False]
    assert kept.read_text() == "as it was"


def test_code_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CPU_S", 1)
    monkeypatch.setattr(sandbox, "WALL_S", 2)
    endless = ("while True: pass", "import time; time.sleep(60)")
    assert passes([(code, "assert True") for code in endless]) == [False, False]


def test_it_runs_in_an_empty_folder_and_without_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODISTE_API_KEY", "secret")
    code = "import os, sys\nfound = os.listdir()\nknown = set(os.environ) - {'LC_CTYPE'}"
    assert passes([(code, "assert found == [] and not known and sys.stdin.read() == ''")]) == [True]


def test_the_code_of_an_answer_is_its_first_block_else_all_of_it() -> None:
    assert code_in("So:\n```python\na = 1\n```\nor\n```\nb = 2\n```") == "a = 1\n"
    assert code_in("```py\na = 1") == "a = 1"
    assert code_in("a = `1`") == "a = `1`"


def test_asserts_are_text_or_a_list_of_texts() -> None:
    assert statements('["assert a", "assert b"]') == "assert a\nassert b"
    assert statements("assert [1] == [1]") == "assert [1] == [1]"
    assert statements("null") == ""
