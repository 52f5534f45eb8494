"""Renders the chart as an install would, for the tests beside this file."""

import itertools
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

CHART = Path(__file__).parents[2] / "helm"
SCENARIOS = ["defaults", *sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))]
KEY = "a-key-that-nobody-guesses-0123456789"

Objects = list[dict[str, Any]]


def scenario(name: str) -> dict[str, Any]:
    """The values of a file under ci/, none for the defaults."""
    return {} if name == "defaults" else yaml.safe_load((CHART / f"ci/{name}.yaml").read_text())


def render(values: dict[str, Any] | None = None, release: str = "demo") -> Objects:
    with helm.Chart.load(CHART) as chart:
        manifests = chart.render(values, name=release, namespace="prod")
    manifests.pop("modiste/templates/NOTES.txt")
    documents = (yaml.safe_load_all(text) for text in manifests.values())
    return [document for document in itertools.chain(*documents) if document]


def only(objects: Objects, kind: str) -> dict[str, Any]:
    [found] = [o for o in objects if o["kind"] == kind]
    return found


def kinds(objects: Objects) -> set[str]:
    return {o["kind"] for o in objects}


def pod_specs(objects: Objects) -> list[dict[str, Any]]:
    deployment = only(objects, "Deployment")["spec"]["template"]["spec"]
    return [deployment, only(objects, "Pod")["spec"]]


def containers(objects: Objects) -> list[dict[str, Any]]:
    return [
        container
        for spec in pod_specs(objects)
        for container in spec.get("initContainers", []) + spec["containers"]
    ]


def server(objects: Objects) -> dict[str, Any]:
    return only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def pod_annotations(values: dict[str, Any]) -> dict[str, str]:
    return only(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]


def settings_file(objects: Objects) -> dict[str, Any]:
    [config] = [o for o in objects if o["kind"] == "ConfigMap" and "modiste.yaml" in o["data"]]
    return yaml.safe_load(config["data"]["modiste.yaml"])
