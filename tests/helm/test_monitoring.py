"""Alerts and dashboard ask for what exists; the rules fire as they should and are explained."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import helm_python as helm
import pytest
import yaml
from prometheus_client import REGISTRY

from tests.helm.queries import ALERTS, DASHBOARD, RULES, named, queries
from tests.helm.rendering import CHART, kinds, only, render, server, settings_file, templates
from tests.metrics import exported

ROOT = CHART.parent
OPERATING = (ROOT / "docs" / "operating.md").read_text()
TARGET_LABELS = {"job", "instance"}
"""Added by Prometheus to all that it scrapes."""


def vllm_series() -> set[str]:
    """Names of the series of vLLM's own metrics, from its source: importing it takes long."""
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0]) / "v1" / "metrics" / "loggers.py"
    pattern = r'self\._(counter|gauge|histogram)_cls\(\s*name="(vllm:\w+)"'
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    found = re.findall(pattern, source.read_text())
    assert len(found) > 20
    return {name + end for kind, name in found for end in ends[kind]}


def known() -> dict[str, set[str] | None]:
    """Series that exist, with their labels; None: not looked at."""
    own = {
        series: {*metric.labels, *({"le"} if series.endswith("_bucket") else ())}
        for metric in exported()
        for series in metric.series
    }
    process = {family.name for family in REGISTRY.collect() if family.name.startswith("process_")}
    return {"up": set(), **own, **dict.fromkeys(vllm_series() | process)}


def test_every_metric_that_a_query_names_exists_with_its_labels() -> None:
    series = known()
    wrong = []
    for place, expression in queries().items():
        found = named(expression)
        assert found.metrics, place
        for metric, labels in found.metrics.items():
            if metric not in series:
                wrong.append(f"{place}: no {metric}")
                continue
            there = series[metric]
            if there is not None and (unknown := labels - there - TARGET_LABELS):
                wrong.append(f"{place}: {metric} has no {unknown}")
        of_all = [series.get(metric) for metric in found.metrics]
        if None not in of_all:
            there = set().union(*of_all)  # type: ignore[arg-type]
            if unknown := found.grouped_by - there - TARGET_LABELS:
                wrong.append(f"{place}: nothing there has {unknown}")
    assert wrong == []


def test_expressions_are_read_right() -> None:
    found = named(
        'topk(3, sum by (a, le) (rate(x_total{b=~"y{z}", c!="w"}[5m] offset 1h))) > 2 and on (d) up'
    )

    assert found.metrics == {"x_total": {"b", "c"}, "up": set()}
    assert found.grouped_by == {"a", "le", "d"}


def test_every_metric_of_ours_is_in_an_alert_or_a_panel() -> None:
    shown = {metric for query in queries().values() for metric in named(query).metrics}
    # what the Gateway's extension routes by
    hidden = {"vllm:lora_requests_info"}

    assert [m.name for m in exported() if not m.series & shown and m.name not in hidden] == []


def test_every_alert_is_explained() -> None:
    rows = re.findall(r"^\| `(Modiste\w+)` \| .{20,} \|$", OPERATING, re.MULTILINE)

    assert sorted(rows) == sorted(rule["alert"] for rule in RULES)


def test_every_alert_says_how_bad_it_is_and_what_it_is() -> None:
    for rule in RULES:
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_has_its_rows_and_no_panel_lies_on_another() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Now", "Traffic", "Latency", "Tokens", "Residency", "Engine", "Jobs and batches",
        "Queue before the engine", "Errors", "Servers",
    ]  # fmt: skip
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_variables_of_the_dashboard_are_defined() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))

    assert used - {"__rate_interval"} == defined
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            inside = re.search(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert inside is not None
            (metric,) = named(inside[1]).metrics
            assert inside[2] in {*(known()[metric] or ()), *TARGET_LABELS}


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def promtool(*arguments: str) -> None:
    command = ["promtool", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_rules_and_every_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool("check", "rules", str(CHART / "files" / "alerts.yaml"))
    asked = [
        {"record": f"x:{n}", "expr": query.replace("$__rate_interval", "5m")}
        for n, query in enumerate(queries().values())
    ]
    rules = tmp_path / "queries.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": asked}]}))
    promtool("check", "rules", str(rules))


@needs_promtool
def test_every_alert_fires_when_it_should() -> None:
    cases = ROOT / "tests" / "helm" / "alerts_test.yaml"
    fired = {
        case["alertname"]
        for test in yaml.safe_load(cases.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }

    assert fired == {rule["alert"] for rule in RULES}
    promtool("test", "rules", str(cases))


def test_nothing_of_this_is_made_unless_asked_for() -> None:
    assert not {"PrometheusRule", "ServiceMonitor", "PodMonitor"} & kinds(render())


def test_pods_can_be_followed_in_place_of_the_service() -> None:
    objects = render({"monitoring": {"operator": True, "monitor": "pod", "interval": "10s"}})
    monitor = only(objects, "PodMonitor")["spec"]
    labels = templates(objects)["server"]["metadata"]["labels"]

    assert "ServiceMonitor" not in kinds(objects)
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in server(objects)["ports"]}
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "10s")
    assert endpoint["relabelings"][0]["replacement"] == "prod/modiste"


def test_the_operator_gets_the_rules_and_the_service() -> None:
    labels = {"release": "prometheus"}
    objects = render({"monitoring": {"operator": True, "labels": labels}})
    rule, monitor = only(objects, "PrometheusRule"), only(objects, "ServiceMonitor")

    assert rule["spec"] == ALERTS
    assert labels.items() <= rule["metadata"]["labels"].items()
    assert labels.items() <= monitor["metadata"]["labels"].items()
    service = only(objects, "Service")
    chosen = monitor["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    (job,) = endpoint["relabelings"]
    assert (job["targetLabel"], job["replacement"]) == ("job", "prod/modiste")


def test_grafana_gets_the_dashboard_as_it_is() -> None:
    objects = render({"monitoring": {"dashboard": True}})
    (found,) = [o for o in objects if "grafana_dashboard" in o["metadata"]["labels"]]

    assert json.loads(found["data"]["modiste.json"]) == DASHBOARD
    assert len(json.dumps(found)) < 500_000  # etcd takes 1 MiB


def test_a_collector_is_reached_or_refused() -> None:
    collector = {"otlp_endpoint": "http://collector:4318"}
    assert (
        settings_file(render({"settings": collector}))["otlp_endpoint"] == "http://collector:4318"
    )
    for endpoint in ("collector:4318", "http://me:secret@collector:4318", "http://c?token=x"):
        with pytest.raises(helm.HelmError, match="otlp_endpoint"):
            render({"settings": {"otlp_endpoint": endpoint}})
    with pytest.raises(helm.HelmRenderError, match="could not reach the collector"):
        render({"settings": collector, "networkPolicy": {"enabled": True}})
