"""What the dashboard and the alerts ask Prometheus for is what Ray or a training exports, and Prometheus finds it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray.dashboard.modules.metrics
import yaml

from jobs.gauges import NAMES
from tests.infra_files import INFRA, manifests, pods

MONITORING = INFRA / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
METRIC = re.compile(r"\b(?:ray|autoscaler)_\w+")


def exported() -> set[str]:
    """The names that Ray's own dashboards ask for, and ours."""
    [folder] = ray.dashboard.modules.metrics.__path__
    texts = [path.read_text() for path in Path(folder, "dashboards").glob("*_panels.py")]
    return {name for text in texts for name in METRIC.findall(text)} | {f"ray_{name}" for name in NAMES}


def asked() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return panels + [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", asked())
def test_a_question_is_about_what_is_exported(expression: str) -> None:
    # Less the labels, of which some begin like names.
    names = set(METRIC.findall(re.sub(r"\b(by|without) \([^)]*\)|\{[^}]*\}", "", expression)))
    assert names
    assert names <= exported()
    assert expression.count("(") == expression.count(")")


def test_all_that_a_training_says_is_shown() -> None:
    shown = " ".join(asked())
    assert all(f"ray_{name}" in shown for name in NAMES)


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_prometheus_looks_where_ray_lists_its_machines() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    [job] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]


def test_prometheus_in_kubernetes_keeps_the_ports_that_pods_have_and_policies_let_it_reach() -> None:
    [job] = yaml.safe_load((MONITORING / "prometheus-kubernetes.yaml").read_text())["scrape_configs"]
    rules = {rule["source_labels"][0]: rule.get("regex") for rule in job["relabel_configs"]}
    kept = re.compile(rules["__meta_kubernetes_pod_container_port_name"])
    ports = {
        one["containerPort"]
        for _, manifest in manifests("RayCluster", "RayJob")
        for pod in pods(manifest)
        for container in pod["containers"]
        for one in container.get("ports", ())
        if kept.fullmatch(one["name"])
    }
    [policy] = [one["spec"] for name, one in manifests("NetworkPolicy") if name.endswith(":semsam-ray")]
    [rule] = [rule for rule in policy["ingress"] if "ports" in rule]
    assert ports == {one["port"] for one in rule["ports"]} == {8080, 44217, 44227}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for name in ("prometheus.yaml", "prometheus-kubernetes.yaml"):
        for one in yaml.safe_load((MONITORING / name).read_text())["rule_files"]:
            assert (MONITORING / one).exists()
