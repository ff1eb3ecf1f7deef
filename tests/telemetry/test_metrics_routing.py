"""The metrics of routing: choices, failovers, speeds, and the nodes that are up."""

import math

import pytest

from lcp_gateway.telemetry.metric_table import FAILOVER_CAUSES, PREFIX, SOURCES
from lcp_gateway.telemetry.metrics import MAX_NODES, MAX_PEERS, Metrics

ALICE, NODE = "02" + "a" * 64, "node:n1"
CHAT = "/v1/chat/completions"


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.set_known({"echo-1"}, {ALICE, NODE})
    return metrics


def series_of(metrics, name):
    """Return the labels of every series of a metric as a scrape sees them."""
    lines = metrics.render()[0].decode().splitlines()
    return [line for line in lines if line.startswith(PREFIX + name + "{")]


def test_a_choice_is_counted_for_its_provider_and_its_score_for_its_source(metrics, value):
    metrics.choice("node", NODE, 0.83)
    metrics.choice("node", NODE, 0.95)
    metrics.choice("lcp", ALICE, 0.41)
    assert value("routing_choices_total", source="node", peer=NODE) == 2
    assert value("routing_choices_total", source="lcp", peer=ALICE) == 1
    assert value("routing_score_count", source="node") == 2
    assert value("routing_score_bucket", source="node", le="0.9") == 1
    assert value("routing_score_sum", source="lcp") == 0.41


def test_choices_of_a_provider_begin_at_zero_under_what_it_is(value):
    assert value("routing_choices_total", source="lcp", peer=ALICE) == 0
    assert value("routing_choices_total", source="node", peer=NODE) == 0
    assert value("routing_choices_total", source="node", peer=ALICE) is None
    for source in SOURCES:
        assert value("routing_choices_total", source=source, peer="other") == 0
        assert value("routing_score_count", source=source) == 0


def test_failovers_are_counted_by_cause_and_source_from_zero(metrics, value):
    for cause in (*FAILOVER_CAUSES, "other"):
        for source in SOURCES:
            assert value("failovers_total", cause=cause, source=source) == 0
    metrics.failover("refused")
    metrics.failover("failed", "node")
    metrics.failover("failed", source="node")
    metrics.failover("\ud800")
    assert value("failovers_total", cause="refused", source="lcp") == 1
    assert value("failovers_total", cause="failed", source="node") == 2
    assert value("failovers_total", cause="other", source="lcp") == 1


def test_the_speed_of_a_provider_is_what_was_told_last(metrics, value):
    metrics.provider_speed(NODE, "node", 0.25, 40.0)
    metrics.provider_speed(NODE, "node", 0.5, 20.0)
    assert value("provider_first_byte_seconds", source="node", peer=NODE) == 0.5
    assert value("provider_tokens_per_second", source="node", peer=NODE) == 20


def test_what_was_not_measured_is_absent_and_leaves_what_was(metrics, value):
    metrics.provider_speed(ALICE, "lcp", None, 30.0)
    assert not series_of(metrics, "provider_first_byte_seconds")
    metrics.provider_speed(ALICE, "lcp", 0.1, None)
    assert value("provider_tokens_per_second", source="lcp", peer=ALICE) == 30


def test_a_provider_that_is_not_known_by_name_has_no_speed(metrics):
    metrics.provider_speed("unknown provider", "lcp", 0.1, 30.0)
    assert not series_of(metrics, "provider_tokens_per_second")


def test_a_node_that_goes_and_comes_back_has_changed_twice(metrics, value):
    metrics.node_up("n1", True)
    assert value("node_up", node="n1") == 1
    for to in ("up", "down"):
        assert value("node_changes_total", node="n1", to=to) == 0
    metrics.node_up("n1", False)
    metrics.node_up("n1", False)
    assert value("node_up", node="n1") == 0
    assert value("node_changes_total", node="n1", to="down") == 1
    metrics.node_up("n1", True)
    assert value("node_up", node="n1") == 1
    assert value("node_changes_total", node="n1", to="up") == 1


def test_a_node_that_was_never_up_has_its_series_all_the_same(metrics, value):
    metrics.node_up("away", False)
    assert value("node_up", node="away") == 0
    assert value("payments_total", outcome="settled", peer="node:away") == 0
    assert value("routing_choices_total", source="node", peer="node:away") == 0


def test_at_most_200_nodes_become_labels_and_the_rest_is_left_out(metrics):
    for number in range(MAX_NODES + 50):
        metrics.node_up(f"n{number:03}", True)
        metrics.node_up(f"n{number:03}", False)
    assert len(series_of(metrics, "node_up")) == MAX_NODES
    assert len(series_of(metrics, "node_changes_total")) == 2 * MAX_NODES
    assert len(series_of(metrics, "undelivered_total")) <= MAX_PEERS + 1


def test_auto_is_a_model_from_the_start_with_all_its_words(value):
    metrics = Metrics()
    for model in ("auto", "auto:fast", "auto:made up\ud800"):
        metrics.request(CHAT, model, 200, "none", False, 0.1)
        metrics.first_byte(CHAT, model, 0.1)
    metrics.request(CHAT, "automatic", 404, "none", False, 0.1)

    def requests(model, status):
        labels = {"endpoint": CHAT, "model": model, "status": status}
        return metrics.registry.get_sample_value(
            PREFIX + "requests_total", {**labels, "payment": "none", "stream": "false"}
        )

    assert requests("auto", "200") == 3
    assert requests("other", "404") == 1


@pytest.mark.parametrize("word", ["", "elsewhere", "\ud800", "two\nlines", "x" * 200])
@pytest.mark.parametrize("number", [0.0, -1.0, math.inf, math.nan])
def test_nothing_raises_whatever_the_words_and_numbers(metrics, word, number):
    metrics.choice(word, word, number)
    metrics.failover(word, word)
    metrics.provider_speed(ALICE, word, number, number)
    metrics.provider_speed(word, word, number, number)
    metrics.node_up(word, True)
    metrics.node_up(word, False)
    assert b"echo-1" in metrics.render()[0]
    assert b"x" * 200 not in metrics.render()[0]
