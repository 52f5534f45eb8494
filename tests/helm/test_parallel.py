"""Engines over several GPUs and nodes: vLLM's arguments, and groups of pods."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest

from tests.helm.rendering import (
    CHART,
    main_container,
    of_kind,
    only,
    pod,
    render,
    scenario,
    server,
    settings_file,
    templates,
)

NODES = scenario("multi-node")


class TestArguments:
    def test_one_gpu_needs_none(self) -> None:
        assert settings_file(render({"gpu": {"count": 1}}))["vllm_args"] == []

    def test_they_follow_those_of_the_values(self) -> None:
        values = {
            "gpu": {"count": 8},
            "parallel": {"tensor": 2, "pipeline": 2, "data": 2},
            "settings": {"vllm_args": ["--seed", "0"]},
        }

        assert settings_file(render(values))["vllm_args"] == [
            "--seed", "0", "--tensor-parallel-size", "2", "--pipeline-parallel-size", "2",
            "--data-parallel-size", "2",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("gpus", "parallel"),
        [(1, {"tensor": 2}), (4, {"tensor": 2}), (2, {"tensor": 2, "pipeline": 2})],
    )
    def test_they_must_fit_the_gpus(self, gpus: int, parallel: dict[str, int]) -> None:
        with pytest.raises(helm.HelmRenderError, match="parallel asks for"):
            render({"gpu": {"count": gpus}, "parallel": parallel})


class TestNodes:
    def test_an_engine_over_nodes_is_a_group_of_pods_in_place_of_a_deployment(self) -> None:
        objects = render(NODES)
        group = only(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]

        assert [o for o in of_kind(objects, "Deployment") if "server" in str(o["metadata"])] == []
        assert group["size"] == 2
        assert group["restartPolicy"] == "RecreateGroupOnPodRestart"
        for component in ("server", "engine-node"):
            limits = main_container(objects, component)["resources"]["limits"]
            assert limits["nvidia.com/gpu"] == 8

    def test_the_group_has_another_name_than_the_service(self) -> None:
        objects = render(NODES | {"autoscaling": {"kind": "hpa"}})
        name = only(objects, "LeaderWorkerSet")["metadata"]["name"]

        assert name != only(objects, "Service")["metadata"]["name"]  # the operator makes one of it
        target = only(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("LeaderWorkerSet", name)

    def test_only_leaders_get_requests(self) -> None:
        objects = render(NODES)
        selector = only(objects, "Service")["spec"]["selector"]
        labels = templates(objects)["engine-node"]["metadata"]["labels"]

        assert not selector.items() <= labels.items()

    def test_all_nodes_get_the_same_arguments_but_for_their_number(self) -> None:
        objects = render(NODES)
        leader, node = server(objects)["args"], main_container(objects, "engine-node")["args"]

        assert leader[:2] == ["serve", "--"]
        assert [a if a != "$(LWS_WORKER_INDEX)" else "0" for a in node] == leader[2:]
        assert node[-6:] == [
            "--nnodes", "2", "--node-rank", "$(LWS_WORKER_INDEX)",
            "--master-addr", "$(LWS_LEADER_ADDRESS)",
        ]  # fmt: skip
        assert set(settings_file(objects)["vllm_args"]) <= set(node)

    def test_a_node_stays_until_the_leader_has_drained(self) -> None:
        spec = pod(render(NODES), "engine-node")
        waits_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

        assert waits_s >= NODES["settings"]["shutdown_grace_s"]
        assert spec["terminationGracePeriodSeconds"] > waits_s

    def test_a_network_policy_lets_the_nodes_of_an_engine_talk(self) -> None:
        objects = render(NODES)
        labels = {name: t["metadata"]["labels"] for name, t in templates(objects).items()}
        for component, peer in (("server", "engine-node"), ("engine-node", "server")):
            policy = only(objects, "NetworkPolicy", component)["spec"]
            for direction, side in (("ingress", "from"), ("egress", "to")):
                open_to = [
                    p for rule in policy[direction] if "ports" not in rule for p in rule[side]
                ]
                assert any(
                    p["podSelector"]["matchLabels"].items() <= labels[peer].items() for p in open_to
                )

    def test_of_one_group_the_old_leaves_first(self) -> None:
        def rolling(**values: Any) -> dict[str, Any]:
            strategy = only(render({**NODES, **values}), "LeaderWorkerSet")["spec"]
            return dict(strategy["rolloutStrategy"]["rollingUpdateConfiguration"])

        assert rolling() == {"maxSurge": 0, "maxUnavailable": 1}
        assert rolling(replicas=2) == {"maxSurge": 1, "maxUnavailable": 0}

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"settings": {**NODES["settings"], "max_loras": None}}, "max_loras"),
            ({"persistence": {"existingClaim": "m"}}, "ReadWriteMany"),
            ({"database": {}}, "database"),
            ({"parallel": {"nodes": 2}}, "tensor"),
        ],
    )
    def test_what_the_nodes_must_share_is_asked_for(
        self, changed: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(helm.HelmRenderError, match=rf"parallel.nodes is above 1.*{told}"):
            render({**NODES, "networkPolicy": {}, **changed})

    def test_the_script_of_a_node_is_there_when_there_are_nodes(self) -> None:
        def scripts(values: dict[str, Any]) -> list[str]:
            configs = of_kind(render(values), "ConfigMap")
            return [key for o in configs for key in o["data"] if key == "engine_node.py"]

        assert scripts(NODES) == ["engine_node.py"]
        assert scripts({}) == []


class TestEngineNode:
    """`files/engine_node.py`, with commands that print what they were called with."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        (tmp_path / "modiste").write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            "assert sys.argv[1:3] == ['serve', '--print'] and sys.argv[4] == '--'\n"
            "what, more = sys.argv[3], sys.argv[5:]\n"
            'environment = {"VLLM_PLUGINS": "modiste"}\n'
            'print(json.dumps(environment if what == "env" else ["/base", *more]))\n'
        )
        (tmp_path / "vllm").write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            'print(json.dumps([sys.argv[1:], os.environ["VLLM_PLUGINS"]]))\n'
        )
        for name in ("modiste", "vllm"):
            (tmp_path / name).chmod(0o755)
        return str(tmp_path)

    def test_it_becomes_the_leaders_engine_without_a_front_end(self, path: str) -> None:
        command = [sys.executable, CHART / "files/engine_node.py", "--nnodes", "2"]
        done = subprocess.run(
            command, env={"PATH": path}, capture_output=True, check=True, timeout=60
        )

        arguments, plugins = json.loads(done.stdout)
        assert arguments == ["serve", "/base", "--nnodes", "2", "--headless"]
        assert plugins == "modiste"

    def test_a_registry_that_is_away_ends_it(self, path: str) -> None:
        (Path(path) / "modiste").write_text("#!/bin/sh\nexit 1\n")
        command = [sys.executable, CHART / "files/engine_node.py"]
        done = subprocess.run(
            command, env={"PATH": path}, capture_output=True, check=False, timeout=60
        )

        assert done.returncode != 0
        assert done.stdout == b""
