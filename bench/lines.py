"""A process beside a benchmark that is asked with one line of JSON and answers with one."""

import json
import subprocess
import sys
from typing import Any, Self


class LineProcess:
    """Runs a module that reads questions from stdin until that ends.

    Args:
        module: by its dotted name.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, at which it ends

    def ask(self, question: dict[str, Any]) -> Any:
        """Its answer; None: it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return json.loads(line) if line else None
