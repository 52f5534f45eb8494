"""What the further nodes of an engine run: vLLM without a front end.

Arguments and environment are those of the leader: both come from `modiste serve --print`, which
starts nothing. What is given here are more arguments for vLLM.
"""

import json
import os
import subprocess
import sys
from typing import Any


def shown(what: str, more: list[str]) -> Any:
    """What `modiste serve` would start vLLM with: `args` or `env`."""
    command = ["modiste", "serve", "--print", what, "--", *more]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main(more: list[str]) -> None:
    """Become vLLM."""
    environment = {**os.environ, **shown("env", more)}
    arguments = shown("args", more)
    os.execvpe("vllm", ["vllm", "serve", *arguments, "--headless"], environment)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
