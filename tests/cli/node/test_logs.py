"""What the log of a node over lnd writes and counts."""

import io
import json
import logging

import pytest
import structlog

from lcp_gateway.cli.node.logs import NodeEvents
from lcp_gateway.telemetry.node_metrics import NodeMetrics
from tests.telemetry.test_node_metrics import PEER, read_samples


@pytest.fixture
def metrics():
    return NodeMetrics(models=("m",))


@pytest.fixture
def lines():
    return io.StringIO()


@pytest.fixture
def log(metrics, lines):
    written = structlog.wrap_logger(
        structlog.PrintLogger(lines),
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer(default=str)],
        # Whatever level another test set for this process.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )
    return NodeEvents(metrics, written)


def logged(lines):
    return [json.loads(line) for line in lines.getvalue().splitlines()]


async def test_what_is_refused_or_dropped_is_counted_and_logged(log, metrics, lines):
    log.job_refused(PEER, 2, "rate_limited")
    log.message_dropped(PEER, "unknown type")

    samples = await read_samples(metrics)
    assert samples["refused_total", "rate_limited"] == 1
    assert samples["messages_dropped_total", "unknown type"] == 1
    assert [line["peer_id"] for line in logged(lines)] == [PEER, PEER]


def test_changes_of_lnd_and_of_links_are_logged_once(log, lines):
    for connected in (True, True, False, False, True):
        log.lightning(connected=connected)
    log.link(PEER, 2, ready=True)
    log.link(PEER, 2, ready=False)

    assert [(line["level"], line["event"]) for line in logged(lines)] == [
        ("info", "lnd delivers messages"),
        ("warning", "lnd delivers no messages; it is asked again"),
        ("info", "lnd delivers messages"),
        ("info", "a peer is ready"),
        ("info", "a peer is no longer ready"),
    ]


async def test_a_problem_is_counted_and_logged_with_its_cause(log, metrics, lines):
    log.problem("send", OSError("away"), again_in_s=0.5)
    log.problem("a part that the table does not list", OSError("away"))

    samples = await read_samples(metrics)
    assert (samples["problems_total", "send"], samples["problems_total", "other"]) == (1, 1)
    assert logged(lines)[0]["part"] == "send"
    assert logged(lines)[0]["exc_info"] == "away"
