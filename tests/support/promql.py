"""Which metrics a PromQL query asks for, and where queries are found in the deployment's files."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.node_metrics import NodeMetrics

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "lcp-gateway.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PROMETHEUS_OWN = {"up", "ALERTS"}


@dataclass(frozen=True)
class Query:
    where: str
    expr: str


def dashboard_queries() -> Iterator[Query]:
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"{panel['title']} ({target['refId']})", target["expr"])
    for annotation in board["annotations"]["list"]:
        yield Query(f"annotation {annotation['name']}", annotation["expr"])


def alert_rules() -> list[dict]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def names_and_labels(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Return every selector's metric name with the labels it matches on."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    for name, matchers in re.findall(r"\b([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", bare):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    # A gateway's metric without a selector would mix the series of every job.
    for name in re.findall(r"\b(?:lcpgateway|process|python)_\w+", bare):
        if not re.search(rf"\b{name}\s*\{{", bare):
            yield name, set()


def exposed_names() -> set[str]:
    """Return the name of every series that a gateway exposes, with a node over lnd in its process."""
    metrics = Metrics()
    NodeMetrics(metrics.registry)
    found = set()
    for family in metrics.registry.collect():
        if family.type == "histogram":
            found |= {family.name + end for end in ("_bucket", "_sum", "_count")}
        elif family.type == "counter":
            found.add(family.name + "_total")
        else:
            found.add(family.name)
    return found
