"""Strict validation: Kubernetes' own objects by kubernetes-validate's schemas, others by ours.

kubernetes-validate reads all definitions of a release for each object; here that is done once. The
schemas in `crds/` are the parts of custom resources that a user writes, reduced to names, types and
limits; each names its source. Two keywords of theirs stand for what Kubernetes defines.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from kubernetes_validate.utils import all_versions, schema_contents
from packaging.version import Version
from referencing import Registry, Resource

NEWEST_VERSIONS = sorted(set(all_versions()), key=Version)[-3:]

CRDS = {
    (crd["apiVersion"], crd["kind"]): crd
    for crd in (json.loads(p.read_text()) for p in (Path(__file__).parent / "crds").glob("*.json"))
}


def problems(item: dict[str, Any], version: str) -> list[str]:
    """What is wrong with an object in a release of Kubernetes, each with its place."""
    if (item["apiVersion"], item["kind"]) in CRDS:
        validator = _custom(item["apiVersion"], item["kind"], version)
    else:
        validator = _kubernetes(item["apiVersion"], item["kind"], version)
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(item)]


@cache
def _registry(version: str) -> Registry[Any]:
    contents = schema_contents(f"{_folder(version)}/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}-local-strict"


@cache
def _kubernetes(api_version: str, kind: str, version: str) -> Draft202012Validator:
    # rbac.authorization.k8s.io/v1 is rbac-v1 there
    name = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"{_folder(version)}/{kind.lower()}-{name}.json", version)
    return Draft202012Validator(schema, registry=_registry(version))


@cache
def _custom(api_version: str, kind: str, version: str) -> Any:
    schema = {
        "type": "object", "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": api_version}, "kind": {"const": kind},
            "metadata": {"objectMeta": True}, "spec": CRDS[api_version, kind]["spec"],
        },
    }  # fmt: skip

    def told(wrapped: dict[str, Any]) -> Iterator[ValidationError]:
        yield from (ValidationError(problem) for problem in problems(wrapped, version))

    def object_meta(_v: Any, _value: Any, meta: Any, _schema: Any) -> Iterator[ValidationError]:
        return told({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})

    def pod_template(_v: Any, _value: Any, pod: Any, _schema: Any) -> Iterator[ValidationError]:
        return told({"apiVersion": "v1", "kind": "Pod", **pod})

    def behavior(_v: Any, _value: Any, behavior: Any, _schema: Any) -> Iterator[ValidationError]:
        spec = {"maxReplicas": 1, "scaleTargetRef": {"kind": "x", "name": "x"}}
        spec |= {"behavior": behavior}
        kind = "HorizontalPodAutoscaler"
        return told({"apiVersion": "autoscaling/v2", "kind": kind, "spec": spec})

    keywords = {"podTemplate": pod_template, "objectMeta": object_meta, "hpaBehavior": behavior}
    return extend(Draft202012Validator, keywords)(schema)
