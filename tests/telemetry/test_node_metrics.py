"""The metrics of a node over lnd."""

import ast
import dataclasses
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import lcp_gateway.node.runtime
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.runtime.observer import JobEnd, NodeFigures, NodeObserver, Role
from lcp_gateway.telemetry.metric_table import JOB_ENDS, LCP_ERRORS, NODE_PARTS, NODE_SPECS, ROLES
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.node_metrics import NodeMetrics
from tests.support.sources import parsed

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


async def read_samples(metrics):
    """Return the value of each sample, by its name and its label values in the order of the labels' names."""
    body, _ = await metrics.expose()
    return {
        (sample.name.removeprefix("lcpgateway_lcp_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


RUNTIME = Path(lcp_gateway.node.runtime.__file__).parent


def named_parts():
    """Return the names under which the runtime's tasks, steps and problems are reported."""
    for file in RUNTIME.glob("*.py"):
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            first = node.args[0]
            if node.func.attr in {"once", "keep", "persist", "problem"} and isinstance(first, ast.Constant):
                yield first.value


def test_its_words_are_those_of_the_node(metrics):
    observer: NodeObserver = metrics
    assert observer is metrics
    assert tuple(role.value for role in Role) == ROLES
    assert {end.value for end in JobEnd} == set(JOB_ENDS)
    assert {code.name.lower() for code in ErrorCode} == set(LCP_ERRORS)
    parts = set(named_parts())
    assert len(parts) > 10
    assert parts <= set(NODE_PARTS)


async def test_counts_begin_at_zero(metrics):
    samples = await read_samples(metrics)
    for role in ROLES:
        for end in JOB_ENDS:
            assert samples["jobs_total", end, role] == 0
    assert all(samples["problems_total", part] == 0 for part in NODE_PARTS)
    assert samples["earned_msat_total", "m"] == samples["earned_msat_total", "other"] == 0
    assert samples["messages_total", "in", "3"] == 0


async def test_a_sold_job_counts_its_price_by_model(metrics):
    metrics.job_ended(role=Role.SELLER, end=JobEnd.DELIVERED, model="m", paid_msat=5_000)
    metrics.job_ended(role=Role.SELLER, end=JobEnd.FAILED, model="m", paid_msat=2_000)
    metrics.job_ended(role=Role.SELLER, end=JobEnd.DELIVERED, model="no longer sold", paid_msat=1_000)
    metrics.job_ended(role=Role.SELLER, end=JobEnd.EXPIRED, model="m")

    samples = await read_samples(metrics)
    assert samples["earned_msat_total", "m"] == 7_000
    assert samples["earned_msat_total", "other"] == 1_000
    assert samples["undelivered_msat_total",] == 2_000
    assert samples["jobs_total", "delivered", "seller"] == 2
    assert samples["jobs_total", "expired", "seller"] == 1
    assert samples["spent_msat_total",] == 0


async def test_a_bought_job_counts_its_price_and_its_fee(metrics):
    metrics.job_ended(role=Role.BUYER, end=JobEnd.LOST, model="", paid_msat=5_000, fee_msat=12)

    samples = await read_samples(metrics)
    assert (samples["spent_msat_total",], samples["fees_msat_total",]) == (5_000, 12)
    assert samples["jobs_total", "lost", "buyer"] == 1
    assert samples["undelivered_msat_total",] == 0


async def test_messages_are_counted_by_direction_and_version(metrics):
    metrics.message(sent=True, protocol=2, byte_count=100)
    metrics.message(sent=False, protocol=3, byte_count=50)
    metrics.message(sent=False, protocol=9, byte_count=1)

    samples = await read_samples(metrics)
    assert (samples["messages_total", "out", "2"], samples["message_bytes_total", "out", "2"]) == (1, 100)
    assert (samples["messages_total", "in", "3"], samples["message_bytes_total", "in", "3"]) == (1, 50)
    assert samples["messages_total", "in", "other"] == 1


async def test_figures_are_those_of_the_last_call(metrics):
    metrics.set_figures(FIGURES)
    samples = await read_samples(metrics)
    assert samples["links", "ready", "2"] == 3
    assert samples["links", "ready", "3"] == 0
    assert samples["jobs_open", "quoted", "seller"] == 4
    assert samples["jobs_open", "running", "buyer"] == 1
    assert (samples["queue_messages",], samples["queue_bytes",], samples["deepest_queue_messages",]) == (7, 900, 5)
    assert (samples["lnd_up",], samples["invoices_up",]) == (1, 0)

    metrics.set_figures(NodeFigures(lightning_up=False))
    samples = await read_samples(metrics)
    assert samples["links", "ready", "2"] == 0
    assert samples["lnd_up",] == 0
    assert ("invoices_up",) not in samples


async def test_words_and_numbers_that_are_out_of_range_are_no_error(metrics):
    metrics.job_ended(role="another", end="another", model="\udc80", paid_msat=-1)

    assert (await read_samples(metrics))["jobs_total", "other", "other"] == 1


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
