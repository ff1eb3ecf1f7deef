"""The dashboard in the repository is the output of its code, and queries only metrics that the gateway exposes."""

import importlib.util
import json

import pytest

from lcp_gateway.telemetry.metric_table import NODE_SPECS, PREFIX, SPECS
from tests.support.promql import DASHBOARD, PROMETHEUS_OWN, ROOT, dashboard_queries, exposed_names, names_and_labels

TARGET_LABELS = {"job", "instance"}


@pytest.fixture(scope="module")
def board():
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_committed_json_is_what_the_code_makes():
    spec = importlib.util.spec_from_file_location("deploy_grafana_dashboard", ROOT / "deploy/grafana/dashboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert DASHBOARD.read_text() == module.build(), "run: python deploy/grafana/dashboard.py"


def test_queries_name_only_metrics_that_exist_and_only_in_the_chosen_scope(subtests):
    known = exposed_names() | PROMETHEUS_OWN
    labels_of = {series: set(spec.labels) for spec in (*SPECS, *NODE_SPECS) for series in spec.series}
    for query in dashboard_queries():
        with subtests.test(query.where):
            found = list(names_and_labels(query.expr))
            assert found
            for name, labels in found:
                assert name in known
                assert labels >= TARGET_LABELS, f"{name} mixes jobs or instances"
                assert labels - TARGET_LABELS <= labels_of.get(name, set())


def test_every_metric_of_the_gateway_is_on_the_dashboard():
    asked = {name for query in dashboard_queries() for name, _ in names_and_labels(query.expr)}
    missing = {spec.full_name for spec in (*SPECS, *NODE_SPECS) if not asked & set(spec.series)}
    assert missing == set()


def test_every_panel_has_a_description(panels):
    for panel in panels:
        assert panel["title"] and len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_ids_of_their_own_and_do_not_overlap(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert sorted(set(ids)) == sorted(ids)
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_reader_chooses_data_source_job_and_instance(board):
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "job", "instance"]


def test_histograms_are_read_with_their_le_label():
    for query in dashboard_queries():
        if "histogram_quantile" in query.expr:
            assert "by (le" in query.expr and "_bucket{" in query.expr


def test_the_prefix_is_one_word():
    assert PREFIX.count("_") == 1 and PREFIX.endswith("_")
