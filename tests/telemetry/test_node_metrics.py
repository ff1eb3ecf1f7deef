"""The metrics of a node over lnd, and what its observer counts and logs."""

import dataclasses
import io
import json

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.buying_events import Outcome
from lcp_gateway.node.runtime.observer import NodeFigures, Role
from lcp_gateway.telemetry.metric_table import JOB_ENDS, LCP_ERRORS, NODE_PARTS, NODE_SPECS, PAYMENT_ENDS, ROLES
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.node_metrics import NodeMetrics
from lcp_gateway.telemetry.node_observer import LcpNodeObserver

PEER = "02" + 32 * "ab"
FIGURES = NodeFigures(
    lightning_up=True,
    invoices_up=False,
    links={("ready", 2): 3, ("connected", 3): 1},
    quoted={Role.SELLER: 4},
    running={Role.SELLER: 2, Role.BUYER: 1},
    queued_messages=7,
    queued_bytes=900,
    deepest_queue_messages=5,
)


@pytest.fixture
def metrics():
    return NodeMetrics(models=("m",))


@pytest.fixture
def lines():
    return io.StringIO()


@pytest.fixture
def observer(metrics, lines):
    log = structlog.wrap_logger(
        structlog.PrintLogger(lines),
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer(default=str)],
    )
    return LcpNodeObserver(metrics, log)


def logged(lines):
    return [json.loads(line) for line in lines.getvalue().splitlines()]


async def read(metrics):
    """Return the value of each sample, by its name and its label values in the order of the labels' names."""
    body, _ = await metrics.expose()
    return {
        (sample.name.removeprefix("lcpgateway_lcp_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_its_words_are_those_of_the_node():
    assert tuple(role.value for role in Role) == ROLES
    assert {outcome.value for outcome in Outcome} == set(JOB_ENDS)
    assert {code.name.lower() for code in ErrorCode} == set(LCP_ERRORS)


async def test_counts_begin_at_zero(metrics):
    samples = await read(metrics)
    for role in ROLES:
        for end in JOB_ENDS:
            assert samples["jobs_total", end, role] == 0
    assert all(samples["payments_total", end] == 0 for end in PAYMENT_ENDS)
    assert all(samples["problems_total", part] == 0 for part in NODE_PARTS)
    assert samples["earned_msat_total", "m"] == samples["earned_msat_total", "other"] == 0
    assert samples["messages_total", "in", "3"] == 0


async def test_jobs_are_counted_by_side_and_end(observer, metrics, lines):
    observer.job_ended(Role.SELLER, 2, "delivered", model="m")
    observer.job_ended(Role.SELLER, 2, "expired", model="m")
    observer.job_ended(Role.BUYER, 3, "silent")
    observer.job_refused(2, "rate_limited")

    samples = await read(metrics)
    assert samples["jobs_total", "delivered", "seller"] == 1
    assert samples["jobs_total", "expired", "seller"] == 1
    assert samples["jobs_total", "silent", "buyer"] == 1
    assert samples["refused_total", "rate_limited"] == 1
    first = {"level": "info", "event": "a job ended", "role": "seller", "outcome": "delivered", "protocol": 2}
    assert logged(lines)[0] == {**first, "model": "m"}


async def test_earnings_are_counted_by_the_models_that_are_sold(observer, metrics):
    observer.earned(5_000, model="m")
    observer.earned(1_000, model="one that is no longer sold")

    samples = await read(metrics)
    assert samples["earned_msat_total", "m"] == 5_000
    assert samples["earned_msat_total", "other"] == 1_000
    assert samples["spent_msat_total",] == 0


async def test_payments_are_counted_with_their_fees(observer, metrics, lines):
    observer.payment_ended("settled")
    observer.spent(5_000, 12)
    observer.payment_ended("failed")

    samples = await read(metrics)
    assert (samples["spent_msat_total",], samples["fees_msat_total",]) == (5_000, 12)
    assert (samples["payments_total", "settled"], samples["payments_total", "failed"]) == (1, 1)
    assert [line["event"] for line in logged(lines)] == ["a purchase was paid"]


async def test_messages_are_counted_by_direction_and_version(observer, metrics):
    observer.message("out", 2, "quote_request", 100)
    observer.message("in", 3, "call", 50)
    observer.message("in", 9, "another", 1)
    observer.message_dropped("expired")

    samples = await read(metrics)
    assert (samples["messages_total", "out", "2"], samples["message_bytes_total", "out", "2"]) == (1, 100)
    assert (samples["messages_total", "in", "3"], samples["message_bytes_total", "in", "3"]) == (1, 50)
    assert samples["messages_total", "in", "other"] == 1
    assert samples["messages_dropped_total", "expired"] == 1


async def test_figures_are_those_of_the_last_call(metrics):
    metrics.set_figures(FIGURES)
    samples = await read(metrics)
    assert samples["links", "ready", "2"] == 3
    assert samples["links", "ready", "3"] == 0
    assert samples["jobs_open", "quoted", "seller"] == 4
    assert samples["jobs_open", "running", "buyer"] == 1
    assert (samples["queue_messages",], samples["queue_bytes",], samples["deepest_queue_messages",]) == (7, 900, 5)
    assert (samples["lnd_up",], samples["invoices_up",]) == (1, 0)

    metrics.set_figures(NodeFigures(lightning_up=False))
    samples = await read(metrics)
    assert samples["links", "ready", "2"] == 0
    assert samples["lnd_up",] == 0
    assert ("invoices_up",) not in samples


def test_changes_of_lnd_and_of_links_are_logged_once(observer, lines):
    for connected in (True, True, False, False, True):
        observer.lightning(connected=connected)
    observer.link(PEER, 2, ready=True)
    observer.link(PEER, 2, ready=False)

    assert [(line["level"], line["event"]) for line in logged(lines)] == [
        ("info", "lnd delivers messages"),
        ("warning", "lnd delivers no messages; it is asked again"),
        ("info", "lnd delivers messages"),
        ("info", "a peer is ready"),
        ("info", "a peer is no longer ready"),
    ]


async def test_a_problem_is_counted_and_logged_with_its_cause(observer, metrics, lines):
    observer.problem("send", OSError("away"), restart_in_s=0.5)
    observer.problem("a part that the table does not list", OSError("away"))

    samples = await read(metrics)
    assert (samples["problems_total", "send"], samples["problems_total", "other"]) == (1, 1)
    assert logged(lines)[0]["part"] == "send"
    assert logged(lines)[0]["exc_info"] == "away"


async def test_words_and_numbers_that_are_out_of_range_are_no_error(observer, metrics):
    observer.job_ended("another", 7, "another")
    observer.earned(-1, model="\udc80")

    assert (await read(metrics))["jobs_total", "other", "other"] == 1


async def test_a_node_of_its_own_has_its_process_and_its_versions_beside_them(metrics):
    metrics.build_info("1.2.3")
    body, content_type = await metrics.expose("application/openmetrics-text")

    assert content_type.startswith("application/openmetrics-text")
    assert b'lcpgateway_build_info{protocol="2+3"' in body
    assert b"process_resident_memory_bytes" in body
    assert b"lcpgateway_requests_total" not in body
    assert b"_created" not in body


def test_beside_a_gateway_both_are_exposed_together():
    gateway = Metrics()
    NodeMetrics(gateway.registry).set_figures(dataclasses.replace(FIGURES, queued_bytes=123))
    body, _ = gateway.render()

    assert b"lcpgateway_lcp_queue_bytes 123.0" in body
    assert all(f"# HELP {spec.full_name}".encode() in body for spec in NODE_SPECS)
