"""The values: what each option does, what is refused, and that all are documented."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from service.launch import FORBIDDEN_ARGUMENTS, FORBIDDEN_ENVIRONMENT
from tests.helm.rendering import CHART, KEY, kinds, only, pod, render, scenario, server, templates


class TestOptions:
    def test_gpus_are_limits_of_the_server_alone_and_pick_the_image(self) -> None:
        objects = render({"gpu": {"count": 2}})
        [init] = pod(objects)["initContainers"]

        assert server(objects)["resources"]["limits"]["nvidia.com/gpu"] == 2
        assert "nvidia.com/gpu" not in init["resources"]["limits"]
        assert server(objects)["image"].endswith("-gpu")
        assert server(render())["image"].endswith("-cpu")

    def test_on_cpu_the_engine_has_as_many_threads_as_the_limit(self) -> None:
        env = {variable["name"]: variable for variable in server(render())["env"]}

        assert env["OMP_NUM_THREADS"]["valueFrom"]["resourceFieldRef"] == {"resource": "limits.cpu"}
        assert env["VLLM_CPU_OMP_THREADS_BIND"]["value"] == "nobind"

    def test_a_variable_of_the_values_takes_the_place_of_the_charts(self) -> None:
        chosen = {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "auto"}
        env = server(render({"extraEnv": [chosen]}))["env"]

        assert [v for v in env if v["name"] == chosen["name"]] == [chosen]

    def test_a_disruption_budget_comes_with_the_second_replica(self) -> None:
        assert "PodDisruptionBudget" not in kinds(render())
        assert "PodDisruptionBudget" in kinds(render({"replicas": 2}))

    def test_replicas_share_a_node_since_they_share_sqlite(self) -> None:
        spec = pod(render({"replicas": 2}))
        [term] = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]

        assert term["topologyKey"] == "kubernetes.io/hostname"

    def test_ingress_and_network_policy_are_off_until_asked_for(self) -> None:
        assert not {"Ingress", "NetworkPolicy"} & kinds(render())
        assert {"Ingress", "NetworkPolicy"} <= kinds(render(scenario("secured")))

    def test_metrics_and_probes_stay_behind_the_ingress(self) -> None:
        def paths(**ingress: Any) -> list[str]:
            values = {"ingress": {"enabled": True, "hosts": ["a", "b"], **ingress}}
            rules = only(render(values), "Ingress")["spec"]["rules"]
            return [path["path"] for rule in rules for path in rule["http"]["paths"]]

        assert paths() == ["/v1", "/v1"]
        assert paths(path="/") == ["/", "/"]

    def test_the_network_policy_lets_nothing_out(self) -> None:
        policy = only(render(scenario("secured")), "NetworkPolicy")["spec"]

        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["egress"] == []

    @pytest.mark.parametrize("component", ["test", "loadtest"])
    def test_pods_that_ask_the_server_pass_the_network_policy(self, component: str) -> None:
        values = {**scenario("secured"), "loadtest": {"enabled": True}}
        objects = render(values)
        [rule] = only(objects, "NetworkPolicy")["spec"]["ingress"]
        labels = templates(objects)[component]["metadata"]["labels"]

        allowed = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in rule["from"]]
        assert any(peer and peer.items() <= labels.items() for peer in allowed)

    def test_a_claim_of_ones_own_is_used_and_none_is_made(self) -> None:
        objects = render({"persistence": {"existingClaim": "mine"}})
        volumes = pod(objects)["volumes"]

        assert "PersistentVolumeClaim" not in kinds(objects)
        assert {"name": "home", "persistentVolumeClaim": {"claimName": "mine"}} in volumes

    def test_the_claim_outlives_the_release_unless_told_otherwise(self) -> None:
        kept = only(render(), "PersistentVolumeClaim")["metadata"]
        left = only(render({"persistence": {"keep": False}}), "PersistentVolumeClaim")["metadata"]

        assert kept["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert "annotations" not in left


REFUSED = {
    "an unknown key": {"replicaCount": 2},
    "an unknown nested key": {"settings": {"temperature": 0}},
    "a wrong type": {"replicas": "two"},
    "a number as text": {"settings": {"port": "8321"}},
    "a fraction of a GPU": {"gpu": {"count": 0.5}},
    "a port that needs rights": {"settings": {"port": 80}},
    "a rank that vLLM refuses": {"settings": {"max_lora_rank": 24}},
    "an unknown number type": {"settings": {"dtype": "fp8"}},
    "a short key": {"auth": {"keys": ["short"]}},
    "the tag latest": {"image": {"tag": "latest"}},
    "a tag in the repository": {"image": {"repository": "modiste:latest"}},
    "limits without memory": {"resources": {"limits": {"memory": None}}},
    "a bad quantity": {"scratch": "2 gigabytes"},
    "a base name with a slash": {"base": {"name": "../up"}},
    "a vLLM flag that the server refuses": {"settings": {"vllm_args": ["--api-key=x"]}},
    "a variable that skips the model check": {
        "extraEnv": [{"name": "VLLM_SKIP_MODEL_NAME_VALIDATION", "value": "1"}]
    },
    "an Ingress without hosts": {"ingress": {"enabled": True}},
    "no time to leave the Service": {"preStopSeconds": 0},
}

CONTRADICTIONS = {
    "keys from two places": {"auth": {"keys": [KEY], "existingSecret": "callers"}},
    "keys and anonymous use": {"auth": {"allowAnonymous": True}},
    "replicas without a shared home": {"replicas": 2, "persistence": {"enabled": False}},
    "replicas on a volume for one pod": {
        "replicas": 2,
        "persistence": {"accessModes": ["ReadWriteOncePod"]},
    },
}


class TestRefusals:
    @pytest.mark.parametrize("values", REFUSED.values(), ids=REFUSED)
    def test_the_schema_refuses(self, values: dict[str, Any]) -> None:
        with pytest.raises(helm.HelmError, match=r"(?i)schema|specifications"):
            render(values)

    @pytest.mark.parametrize("flag", FORBIDDEN_ARGUMENTS)
    def test_a_flag_that_the_server_refuses_is_refused_before_it_starts(self, flag: str) -> None:
        for written in ([flag, "x"], [f"{flag}=x"]):
            with pytest.raises(helm.HelmError, match="vllm_args"):
                render({"settings": {"vllm_args": written}})

    @pytest.mark.parametrize("name", FORBIDDEN_ENVIRONMENT)
    def test_a_variable_that_the_server_refuses_is_refused_before_it_starts(
        self, name: str
    ) -> None:
        with pytest.raises(helm.HelmError, match="extraEnv"):
            render({"extraEnv": [{"name": name, "value": "1"}]})

    @pytest.mark.parametrize("values", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
    def test_contradictions_are_refused_with_a_reason(self, values: dict[str, Any]) -> None:
        with pytest.raises(helm.HelmRenderError, match=r"auth\.|persistence\.|ReadWriteOncePod"):
            render(values)

    def test_the_schema_knows_exactly_the_values(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())

        # Helm hands `global` to every chart that is part of another.
        assert schema["properties"].pop("global") == {"type": "object"}
        assert schema_paths(schema) == value_paths(values, schema)


def schema_paths(schema: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, part in schema.get("properties", {}).items():
        found |= {prefix + key} | schema_paths(part, f"{prefix}{key}.")
    if schema.get("type") == "object" and "properties" in schema:
        assert schema["additionalProperties"] is False, prefix
    return found


def value_paths(values: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        found.add(prefix + key)
        part = schema["properties"].get(key, {})
        if isinstance(value, dict) and "properties" in part:
            inner = value or dict.fromkeys(part["properties"])
            found |= value_paths(inner, part, f"{prefix}{key}.")
    return found


@pytest.fixture(scope="module")
def document_values() -> Any:
    """The script beside the chart, which is no package."""
    spec = importlib.util.spec_from_file_location("document_values", CHART / "document_values.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TestDocumentation:
    def test_every_value_has_a_comment(self, document_values: Any) -> None:
        values = document_values.read_values((CHART / "values.yaml").read_text())

        assert [v.path for v in values if not v.comment] == []

    def test_the_readme_is_up_to_date(self, document_values: Any) -> None:
        readme = (CHART / "README.md").read_text()
        values = (CHART / "values.yaml").read_text()

        assert document_values.rendered(readme, values) == readme

    def test_the_table_would_follow_a_new_value(self, document_values: Any) -> None:
        readme = (CHART / "README.md").read_text()
        values = (CHART / "values.yaml").read_text() + "\n# Something new.\nnew: {}\n"

        assert "| `new` | `{}` | Something new. |" in document_values.rendered(readme, values)

    def test_the_packaged_chart_has_no_tools_and_examples(self, tmp_path: Path) -> None:
        archive = helm.package(CHART, destination=tmp_path)
        helm.expand(tmp_path, archive)

        names = {path.name for path in (tmp_path / "modiste").iterdir()}
        assert not {"ci", "document_values.py"} & names
        assert (tmp_path / "modiste/files/check_server.py").is_file()
