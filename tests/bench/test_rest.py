"""The plugin by which a vLLM server that is not loaded rests at once."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from bench.rest import SPIN_S, with_rest

SHOW_SPIN = """
import zmq
from vllm.plugins import load_general_plugins
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
load_general_plugins()
condition = SpinCondition(True, zmq.Context(), "inproc://test")
print("spins for", condition.busy_loop_s)
"""


def test_vllm_loads_it_and_its_worker_spins_for_less(tmp_path: Path) -> None:
    environment = with_rest(os.environ | {"VLLM_PLUGINS": ""}, tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", SHOW_SPIN], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert f"spins for {SPIN_S}" in result.stdout, result.stderr


def test_plugins_and_paths_of_the_user_stay(tmp_path: Path) -> None:
    environment = with_rest({"VLLM_PLUGINS": "theirs", "PYTHONPATH": "/theirs"}, tmp_path)

    assert environment["VLLM_PLUGINS"] == "theirs,bench_rest"
    assert environment["PYTHONPATH"].endswith(f"{os.pathsep}/theirs")
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert [entry.group for entry in found.entry_points] == ["vllm.general_plugins"]
