"""The load test as a Job, and fine-tuning on a Ray cluster."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from loadtests.__main__ import _parser as loadtest_parser
from loadtests.scenario import load_scenario, scenario_names
from service.jobs.ray_jobs import RayJobs
from service.jobs.worker import main as worker_main
from tests.helm.rendering import (
    CHART,
    kinds,
    main_container,
    of_kind,
    only,
    pod,
    render,
    scenario,
    templates,
)

LOAD = {"loadtest": {"enabled": True}}
RAY = scenario("ray")


class TestLoadTest:
    def test_the_command_takes_its_arguments(self) -> None:
        objects = render({"loadtest": {"enabled": True, "model": "greeter"}})
        arguments = main_container(objects, "loadtest")["args"]
        assert arguments[0] == "loadtest"
        options = loadtest_parser().parse_args(arguments[1:])

        service = only(objects, "Service")
        port = service["spec"]["ports"][0]["port"]
        assert options.host == f"http://{service['metadata']['name']}:{port}"
        assert options.model == "greeter"
        assert options.scenario in scenario_names()

    def test_a_scenario_of_the_values_is_a_file_that_is_read(self, tmp_path: Path) -> None:
        objects = render(scenario("load-test"))
        arguments = main_container(objects, "loadtest")["args"]
        [config] = [o for o in of_kind(objects, "ConfigMap") if "scenario.yaml" in o["data"]]
        mounts = {
            m["name"]: m["mountPath"] for m in main_container(objects, "loadtest")["volumeMounts"]
        }
        (tmp_path / "scenario.yaml").write_text(config["data"]["scenario.yaml"])

        assert options_of(arguments).scenario == f"{mounts['files']}/scenario.yaml"
        assert load_scenario(tmp_path / "scenario.yaml").users == 8

    def test_the_key_is_in_the_environment_of_the_process_alone(self, tmp_path: Path) -> None:
        container = main_container(render(LOAD), "loadtest")
        (tmp_path / "keys").write_text("first-key-0123456789\nsecond-key-0123456789\n")
        (tmp_path / "modiste").write_text('#!/bin/sh\necho "$MODISTE_API_KEY $*"\n')
        (tmp_path / "modiste").chmod(0o755)
        shell, flag, script, name = container["command"]
        script = script.replace("/etc/modiste/keys/api-keys", str(tmp_path / "keys"))
        done = subprocess.run(
            [shell, flag, script, name, *container["args"]], check=True, capture_output=True,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, text=True, timeout=60,
        )  # fmt: skip

        assert done.stdout == f"first-key-0123456789 {' '.join(container['args'])}\n"
        assert "MODISTE_API_KEY" not in {v["name"] for v in container["env"]}

    def test_without_keys_none_is_read(self) -> None:
        values = {**LOAD, "auth": {"enabled": False, "allowAnonymous": True}}

        assert "command" not in main_container(render(values), "loadtest")
        assert "keys" not in {v["name"] for v in pod(render(values), "loadtest")["volumes"]}

    def test_it_is_run_once_and_kept_for_its_log(self) -> None:
        spec = only(render({"loadtest": {"enabled": True, "keepSeconds": 99}}), "Job")["spec"]

        assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (0, 99)
        assert spec["template"]["spec"]["restartPolicy"] == "Never"

    def test_each_revision_has_its_own_since_a_job_never_changes(self) -> None:
        assert only(render(LOAD), "Job")["metadata"]["name"].endswith("-load-1")

    @pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
    def test_the_load_waits_for_the_server(self, status: int, code: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/health/ready" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            given = {"SERVER": f"http://127.0.0.1:{http.server_port}", "WAIT_S": "0"}
            command = [sys.executable, CHART / "files/await_server.py"]
            done = subprocess.run(
                command, env={**os.environ, **given}, capture_output=True, check=False, timeout=60
            )
            http.shutdown()

        assert done.returncode == code
        assert (b"is not ready" in done.stderr) == (code == 1)


def options_of(arguments: list[str]) -> Any:
    return loadtest_parser().parse_args(arguments[1:])


class TestRay:
    def test_the_worker_gives_jobs_to_the_clusters_head(self) -> None:
        objects = render(RAY)
        arguments = main_container(objects, "worker")["args"]
        cluster = only(objects, "RayCluster")["metadata"]["name"]

        address = arguments[arguments.index("--ray-address") + 1]
        assert address == f"http://{cluster}-head-svc:8265"
        assert arguments[arguments.index("--executor") + 1] == "ray-jobs"
        with pytest.raises(SystemExit) as ended:
            worker_main([*arguments[1:], "--help"])
        assert ended.value.code == 0

    def test_all_have_the_home_at_one_path_and_the_same_image(self) -> None:
        objects = render(RAY)
        images = set()
        for name in ("worker", "ray head", "ray worker"):
            container = main_container(objects, name)
            images.add(container["image"])
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            assert mounts["home"] == "/var/lib/modiste", name
            [home] = [v for v in pod(objects, name)["volumes"] if v["name"] == "home"]
            assert "persistentVolumeClaim" in home

        assert images == {"registry.example.com/ml/modiste-ray:0.1.0-2.60.0"}
        assert RayJobs.shares_memory is False

    def test_the_version_is_the_one_that_the_client_is_locked_to(self) -> None:
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        project = (CHART.parent / "pyproject.toml").read_text()

        assert f"ray[default]=={values['ray']['version']}" in project

    def test_only_the_worker_and_the_cluster_reach_it(self) -> None:
        objects = render(RAY)
        labels = {name: t["metadata"]["labels"] for name, t in templates(objects).items()}
        rules = only(objects, "NetworkPolicy", "ray")["spec"]["ingress"]
        inside = [
            {
                name
                for name, found in labels.items()
                for peer in rule["from"]
                if peer["podSelector"]["matchLabels"].items() <= found.items()
            }
            for rule in rules
        ]

        assert inside == [{"ray head", "ray worker"}, {"worker"}]
        assert rules[1]["ports"] == [{"port": 8265}]

    def test_the_head_runs_no_jobs(self) -> None:
        head = only(render(RAY), "RayCluster")["spec"]["headGroupSpec"]

        assert head["rayStartParams"]["num-cpus"] == "0"

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"worker": {"enabled": False}}, r"worker\.enabled"),
            ({"database": {}, "networkPolicy": {}}, "database"),
            ({"persistence": {"accessModes": ["ReadWriteOnce"]}}, "ReadWriteMany"),
        ],
    )
    def test_what_a_cluster_needs_is_asked_for(self, changed: dict[str, Any], told: str) -> None:
        with pytest.raises(helm.HelmRenderError, match=rf"ray.enabled is true.*{told}"):
            render({**RAY, **changed})

    def test_an_image_with_ray_must_be_named(self) -> None:
        with pytest.raises(helm.HelmError, match="ray"):
            render({**RAY, "ray": {"enabled": True}})
        assert "RayCluster" not in kinds(render())
