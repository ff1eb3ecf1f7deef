"""Prometheus accepts the rules and the configuration, and the rules fire when they should."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from lcp_gateway.telemetry.metric_table import NODE_SPECS, SPECS
from tests.support.promql import PROMETHEUS_OWN, ROOT, alert_rules, exposed_names, names_and_labels

DIRECTORY = ROOT / "deploy" / "prometheus"
OPERATIONS = ROOT / "docs" / "operations.md"


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("promtool is not installed (Debian's package: prometheus)")
    assert found, "promtool must be installed where CI=true"
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("check", "config", "operator.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_files(promtool, arguments):
    done = subprocess.run(
        [promtool, *arguments], cwd=DIRECTORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_use_only_metrics_that_the_gateway_exposes(subtests):
    known = exposed_names() | PROMETHEUS_OWN
    labels_of = {series: set(spec.labels) for spec in (*SPECS, *NODE_SPECS) for series in spec.series}
    for rule in alert_rules():
        with subtests.test(rule["alert"]):
            found = list(names_and_labels(rule["expr"]))
            assert found
            for name, labels in found:
                assert name in known
                assert labels - {"job"} <= labels_of.get(name, set())
                assert "job" in labels


def test_alerts_have_a_severity_and_a_runbook(subtests):
    headings = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for rule in alert_rules():
        with subtests.test(rule["alert"]):
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert set(rule["annotations"]) == {"summary", "description", "runbook"}
            file, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert file == "docs/operations.md"
            assert anchor in anchors, f"docs/operations.md has no section for #{anchor}"


def test_every_alert_has_a_unit_test():
    tests = (DIRECTORY / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in alert_rules() if rule["alert"] not in tests] == []


def test_the_scraped_job_is_the_job_of_the_alerts():
    config = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    asked = {job for rule in alert_rules() for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert asked == {"lcp-gateway"}
    assert asked <= jobs
