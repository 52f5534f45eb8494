"""The alerts and the dashboard, their expressions, and which metrics and labels those name."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from tests.helm.rendering import CHART

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*\{([^}]*)\}")
_WORD = re.compile(r"(?<![\w:.$])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()(?![\w:])")
_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "by", "on"})


class Named(NamedTuple):
    """Metrics with the labels that they are chosen by, and the labels that sums are made by."""

    metrics: dict[str, set[str]]
    grouped_by: set[str]


def named(expression: str) -> Named:
    """What an expression names."""
    text = _RANGE.sub("", _STRING.sub('""', expression))
    grouped = {
        label.strip() for group in _GROUPING.findall(text) for label in group.split(",") if label
    }
    text = _GROUPING.sub("", text)
    found: dict[str, set[str]] = {}
    for metric, selector in _SELECTOR.findall(text):
        found.setdefault(metric, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
    for word in _WORD.findall(_SELECTOR.sub(lambda match: match[1] or "", text)):
        if word.lower() not in _KEYWORDS:
            found.setdefault(word, set())
    return Named(found, grouped)


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def queries() -> dict[str, str]:
    """Every expression, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in RULES}
    for panel in panels():
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found
