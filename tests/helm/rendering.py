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


def render_files(values: dict[str, Any] | None = None, release: str = "demo") -> dict[str, Objects]:
    """The objects of each template."""
    with helm.Chart.load(CHART) as chart:
        manifests = chart.render(values, name=release, namespace="prod")
    manifests.pop("modiste/templates/NOTES.txt")
    return {
        path: [d for d in yaml.load_all(text, _Loader) if d] for path, text in manifests.items()
    }


class _Loader(yaml.CSafeLoader):
    """Refuses what a mapping says twice, as Kubernetes' API does."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(set(keys)) != len(keys):
            raise yaml.YAMLError(f"a key stands twice{node.start_mark}: {keys}")
        return super().construct_mapping(node, deep)


def render(values: dict[str, Any] | None = None, release: str = "demo") -> Objects:
    return list(itertools.chain(*render_files(values, release).values()))


def of_kind(objects: Objects, kind: str) -> Objects:
    return [o for o in objects if o["kind"] == kind]


def only(objects: Objects, kind: str, component: str | None = None) -> dict[str, Any]:
    """The one object of a kind, and where that is given, of a component."""
    [found] = [o for o in of_kind(objects, kind) if component in (None, component_of(o))]
    return found


def component_of(item: dict[str, Any]) -> str:
    return str(item["metadata"]["labels"]["app.kubernetes.io/component"])


def kinds(objects: Objects) -> set[str]:
    return {o["kind"] for o in objects}


def templates(objects: Objects) -> dict[str, dict[str, Any]]:
    """Every pod that the objects make, by its component and, of a Ray cluster, its group."""
    found: dict[str, dict[str, Any]] = {}
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] in ("Deployment", "Job"):
            found[component_of(item)] = spec["template"]
        elif item["kind"] == "Pod":
            found[component_of(item)] = item
        elif item["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            found |= {"server": group["leaderTemplate"], "engine-node": group["workerTemplate"]}
        elif item["kind"] == "RayCluster":
            found["ray head"] = spec["headGroupSpec"]["template"]
            found["ray worker"] = spec["workerGroupSpecs"][0]["template"]
    return found


def pod_specs(objects: Objects) -> list[dict[str, Any]]:
    return [template["spec"] for template in templates(objects).values()]


def containers(objects: Objects) -> list[dict[str, Any]]:
    return [container for spec in pod_specs(objects) for container in all_containers(spec)]


def all_containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def pod(objects: Objects, component: str = "server") -> dict[str, Any]:
    """The spec of a component's pod."""
    return dict(templates(objects)[component]["spec"])


def main_container(objects: Objects, component: str) -> dict[str, Any]:
    return dict(pod(objects, component)["containers"][0])


def server(objects: Objects) -> dict[str, Any]:
    return main_container(objects, "server")


def env(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in container["env"]}


def pod_annotations(values: dict[str, Any], component: str = "server") -> dict[str, str]:
    return dict(templates(render(values))[component]["metadata"]["annotations"])


def settings_file(objects: Objects) -> dict[str, Any]:
    [config] = [o for o in objects if o["kind"] == "ConfigMap" and "modiste.yaml" in o["data"]]
    return dict(yaml.safe_load(config["data"]["modiste.yaml"]))
