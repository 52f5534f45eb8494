"""The Gateway API: routes, the endpoint picker's pool, and several bases behind one gateway."""

import re
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from tests.helm.rendering import CHART, kinds, only, render, scenario, server, templates
from tests.helm.test_monitoring import vllm_series
from tests.metrics import exported

ROUTES = Path(__file__).parents[2] / "service" / "routes"
DEPLOYMENT = (CHART.parent / "docs" / "deployment.md").read_text()
PARENT = {"name": "inference", "namespace": "gateways"}
GATEWAY = {"gateway": {"enabled": True, "parentRefs": [PARENT]}}
POOL = {"inferencePool": {"enabled": True, "endpointPicker": {"service": "picker"}}}


def rules(values: dict[str, Any]) -> list[dict[str, Any]]:
    return list(only(render(values), "HTTPRoute")["spec"]["rules"])


class TestRoute:
    def test_it_is_off_until_asked_for_and_needs_a_gateway(self) -> None:
        assert not {"HTTPRoute", "InferencePool", "InferenceObjective"} & kinds(render())
        with pytest.raises(helm.HelmError, match="parentRefs"):
            render({"gateway": {"enabled": True}})

    def test_it_leads_to_the_service(self) -> None:
        values = {**GATEWAY, "service": {"port": 80}}
        [rule] = rules(values)
        service = only(render(values), "Service")

        [backend] = rule["backendRefs"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"] == service["spec"]["ports"][0]["port"] == 80
        assert only(render(values), "HTTPRoute")["spec"]["parentRefs"] == [PARENT]

    def test_metrics_and_probes_stay_inside(self) -> None:
        for values in (GATEWAY, {**GATEWAY, **POOL}):
            for rule in rules(values):
                for match in rule["matches"]:
                    assert match["path"]["value"].startswith("/v1")

    def test_a_long_answer_is_not_cut(self) -> None:
        for rule in rules({"gateway": {**GATEWAY["gateway"], "timeout": "30m"}, **POOL}):
            assert rule["timeouts"] == {"request": "30m"}


class TestPool:
    def test_what_a_model_answers_goes_to_the_picker_and_the_rest_to_the_service(self) -> None:
        to_pool, rest = rules({**GATEWAY, **POOL})
        [pool] = to_pool["backendRefs"]
        objects = render({**GATEWAY, **POOL})

        assert (pool["group"], pool["kind"]) == ("inference.networking.k8s.io", "InferencePool")
        assert pool["name"] == only(objects, "InferencePool")["metadata"]["name"]
        assert {match["method"] for match in to_pool["matches"]} == {"POST"}
        assert [match["path"] for match in rest["matches"]] == [
            {"type": "PathPrefix", "value": "/v1"}
        ]

    def test_its_paths_are_routes_of_the_server(self) -> None:
        source = "".join(path.read_text() for path in ROUTES.glob("*.py"))
        posts = set(re.findall(r'@router\.post\(\s*"([^"]+)"', source))

        asked = {match["path"]["value"] for match in rules({**GATEWAY, **POOL})[0]["matches"]}
        assert len(asked) == 7
        assert asked <= posts

    def test_it_chooses_the_servers_and_their_port(self) -> None:
        objects = render({**POOL, "settings": {"port": 9000}, "worker": {"enabled": True}})
        pool = only(objects, "InferencePool")["spec"]
        selector = pool["selector"]["matchLabels"]

        assert pool["targetPorts"] == [{"number": server(objects)["ports"][0]["containerPort"]}]
        labels = {name: t["metadata"]["labels"] for name, t in templates(objects).items()}
        assert [n for n, found in labels.items() if selector.items() <= found.items()] == ["server"]
        assert pool["endpointPickerRef"]["name"] == "picker"

    def test_a_pool_without_a_picker_is_refused(self) -> None:
        with pytest.raises(helm.HelmError, match="service"):
            render({"inferencePool": {"enabled": True}})

    def test_objectives_name_the_pool_and_their_priority(self) -> None:
        objects = render(scenario("gateway-large-base"))
        found = {
            o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "InferenceObjective"
        }

        assert {name: spec["priority"] for name, spec in found.items()} == {
            "modiste-interactive": 10, "modiste-background": -10,
        }  # fmt: skip
        pool = only(objects, "InferencePool")["metadata"]["name"]
        assert {spec["poolRef"]["name"] for spec in found.values()} == {pool}


class TestMetricsOfThePicker:
    def rows(self) -> dict[str, str]:
        """What the guide says that the picker reads, by the picker's own word for it."""
        [table] = [
            part for part in DEPLOYMENT.split("\n\n") if part.startswith("| the picker's signal")
        ]
        cells = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
        return {cell[0]: cell[1].strip("`") for cell in cells}

    def test_the_servers_export_each_metric_of_the_guide(self) -> None:
        series = vllm_series() | {name for metric in exported() for name in metric.series}

        assert len(self.rows()) == 4
        assert set(self.rows().values()) <= series

    def test_adapters_are_told_in_the_labels_that_the_picker_reads(self) -> None:
        [metric] = [m for m in exported() if m.name == self.rows()["adapters"]]

        assert set(metric.labels) == {
            "running_lora_adapters", "waiting_lora_adapters", "max_lora",
        }  # fmt: skip


class TestSeveralBases:
    NAMES = ("gateway-small-base", "gateway-large-base")

    def test_one_gateway_tells_them_apart_by_a_header(self) -> None:
        routes = [only(render(scenario(name)), "HTTPRoute")["spec"] for name in self.NAMES]
        headers = [rule["matches"][0]["headers"][0] for r in routes for rule in r["rules"][-1:]]

        assert routes[0]["parentRefs"] == routes[1]["parentRefs"]
        assert routes[0]["hostnames"] == routes[1]["hostnames"]
        assert headers[0]["name"] == headers[1]["name"]
        assert headers[0]["value"] != headers[1]["value"]

    def test_each_rule_asks_for_the_header(self) -> None:
        for name in self.NAMES:
            values = scenario(name)
            for rule in rules(values):
                for match in rule["matches"]:
                    assert match["headers"][0]["value"] == values["base"]["name"]

    def test_two_releases_in_one_namespace_share_no_name(self) -> None:
        first, second = (
            {(o["kind"], o["metadata"]["name"]) for o in render(scenario(name), release=release)}
            for name, release in zip(self.NAMES, ("small", "large"), strict=True)
        )

        assert not first & second

    def test_the_guide_names_the_examples(self) -> None:
        for name in self.NAMES:
            assert f"{name}.yaml" in DEPLOYMENT
            assert yaml.safe_load((CHART / f"ci/{name}.yaml").read_text())
