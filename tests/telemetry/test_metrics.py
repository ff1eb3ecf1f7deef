"""The metrics count events, with few label values."""

import asyncio

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lcp_gateway.telemetry.metric_table import GRPC_CODES, NODE_SPECS, PREFIX, REASONS, SPECS, MetricKind
from lcp_gateway.telemetry.metrics import MAX_MODELS, MAX_PEERS, Metrics
from tests.support.operations import lines_executed

CHAT = "/v1/chat/completions"
ALICE, BOB = "02" + "a" * 64, "03" + "b" * 64


@pytest.fixture
def metrics(clock):
    metrics = Metrics(clock=clock)
    metrics.set_known({"echo-1", "echo-mini"}, {ALICE, BOB})
    return metrics


def label_values(metrics, label):
    return {
        sample.labels[label]
        for family in metrics.registry.collect()
        for sample in family.samples
        if label in sample.labels and sample.name.startswith(PREFIX)
    }


def test_a_request_is_counted_with_its_status_and_its_money(metrics, value):
    metrics.request(CHAT, "echo-1", 200, "settled", True, 0.3)
    metrics.request(CHAT, "echo-1", 200, "settled", True, 0.3)
    metrics.request(CHAT, "echo-1", 502, "none", False, 0.1)
    same = {"endpoint": CHAT, "model": "echo-1"}
    assert value("requests_total", **same, status="200", payment="settled", stream="true") == 2
    assert value("requests_total", **same, status="502", payment="none", stream="false") == 1
    timed = {"endpoint": CHAT, "stream": "true"}
    assert value("request_duration_seconds_count", **timed) == 2
    assert value("request_duration_seconds_sum", **timed) == pytest.approx(0.6)
    assert value("request_duration_seconds_bucket", **timed, le="0.25") == 0
    assert value("request_duration_seconds_bucket", **timed, le="0.5") == 2


def test_a_quote_is_timed_by_peer_and_priced_by_model(metrics, value):
    metrics.quote(ALICE, "echo-1", 0.009, 57_372)
    assert value("quote_duration_seconds_bucket", peer=ALICE, le="0.01") == 1
    assert value("quote_price_msat_sum", model="echo-1") == 57_372
    assert value("quote_price_msat_bucket", model="echo-1", le="50000.0") == 0
    assert value("quote_price_msat_bucket", model="echo-1", le="100000.0") == 1


def test_money_is_counted_to_the_last_millisatoshi(metrics, value):
    metrics.payment("settled", ALICE, "echo-1", 57_373)
    metrics.payment("settled", ALICE, "echo-mini", 1)
    metrics.payment("unknown", ALICE, "echo-1", 5_767_650_000)
    metrics.payment("not_paid", BOB, "echo-1", 999)
    assert value("payments_total", outcome="settled", peer=ALICE) == 2
    assert value("payment_msat_total", outcome="settled", peer=ALICE) == 57_374
    assert value("payment_msat_total", outcome="unknown", peer=ALICE) == 5_767_650_000
    assert value("payment_msat_total", outcome="not_paid", peer=BOB) == 999
    assert value("model_payment_msat_total", outcome="settled", model="echo-1") == 57_373
    assert value("model_payment_msat_total", outcome="settled", model="echo-mini") == 1


def test_an_unknown_outcome_is_counted_and_never_raises(metrics, value):
    metrics.payment("burnt", ALICE, "echo-1", 5)
    assert value("payment_msat_total", outcome="other", peer=ALICE) == 5


def test_paid_and_undelivered_purchases_are_counted_with_their_price(metrics, value):
    metrics.undelivered(BOB, 7_230)
    assert value("undelivered_total", peer=BOB) == 1
    assert value("undelivered_msat_total", peer=BOB) == 7_230


def test_the_rest_of_a_request_is_counted_too(metrics, value):
    metrics.execute(ALICE, "echo-1", 0.08)
    metrics.first_byte(CHAT, "echo-1", 0.02)
    metrics.streamed(100)
    metrics.streamed(28)
    metrics.client_disconnect("stream")
    metrics.grpc_error("RequestQuote", "UNAVAILABLE")
    metrics.refusal("price_limit")
    assert value("execute_duration_seconds_count", peer=ALICE) == 1
    assert value("first_byte_duration_seconds_sum", endpoint=CHAT, model="echo-1") == 0.02
    assert value("streamed_bytes_total") == 128
    assert value("client_disconnects_total", phase="stream") == 1
    assert value("grpc_errors_total", method="RequestQuote", code="UNAVAILABLE") == 1
    assert value("refusals_total", reason="price_limit") == 1


def test_jobs_in_flight_go_up_and_down(metrics, value):
    metrics.concurrency_limit(2048)
    metrics.job_started()
    metrics.job_started()
    metrics.job_ended()
    assert value("jobs_in_flight") == 1
    assert value("jobs_limit") == 2048


def test_the_age_of_the_snapshot_is_worked_out_at_each_scrape(metrics, value, clock):
    clock.now += 7
    assert value("snapshot_age_seconds") == 7, "since the start, as long as there is no snapshot"
    assert value("snapshots_total") == 0
    metrics.snapshot(peers=3, models=4)
    assert value("snapshot_age_seconds") == 0
    clock.now += 12.5
    assert value("snapshot_age_seconds") == 12.5
    assert (value("peers"), value("models"), value("snapshots_total")) == (3, 4, 1)


def test_the_daemon_is_down_until_it_has_answered(metrics, value):
    assert value("daemon_up") == 0
    metrics.daemon_up(True)
    assert value("daemon_up") == 1
    metrics.daemon_up(False)
    assert value("daemon_up") == 0


def test_the_transport_to_the_daemon_is_set(metrics, value):
    metrics.lcpd_transport("direct")
    assert value("lcpd_transport", transport="direct") == 1


def test_the_build_is_reported_once_even_when_the_protocol_becomes_known_later(metrics):
    metrics.build_info("0.1.0", "unknown")
    metrics.build_info("0.1.0", "2")
    lines = [line for line in metrics.render()[0].decode().splitlines() if "build_info{" in line]
    assert len(lines) == 1
    assert 'protocol="2"' in lines[0] and 'version="0.1.0"' in lines[0]


# -- labels -------------------------------------------------------------------------------------


def test_a_model_that_no_provider_advertises_becomes_other(metrics, value):
    for number in range(1000):
        metrics.request(CHAT, f"made-up-{number}", 404, "none", False, 0.001)
        metrics.first_byte(CHAT, f"made-up-{number}", 0.001)
        metrics.quote(f"peer-{number}", f"made-up-{number}", 0.001, 1)
        metrics.payment("settled", f"peer-{number}", f"made-up-{number}", 1)
        metrics.execute(f"peer-{number}", f"made-up-{number}", 1)
        metrics.undelivered(f"peer-{number}", 1)
    same = {"endpoint": CHAT, "model": "other", "payment": "none", "stream": "false"}
    assert value("requests_total", **same, status="404") == 1000
    assert label_values(metrics, "model") == {"other", "echo-1", "echo-mini"}
    assert label_values(metrics, "peer") == {"other", ALICE, BOB}


def test_no_state_grows_with_values_that_clients_make_up(metrics):
    def kept():
        return sum(len(held) for held in vars(metrics).values() if hasattr(held, "__len__"))

    metrics.request(CHAT, "x", 404, "none", False, 0.001)
    before = kept()
    for number in range(1000):
        metrics.request(CHAT, f"made-up-{number}", 404, "none", False, 0.001)
    assert kept() == before


def test_at_most_200_models_and_200_peers_ever_become_labels(metrics):
    for start in range(0, 1000, 100):
        models = [f"m{number:04}" for number in range(start, start + 100)]
        peers = [f"{number:066x}" for number in range(start, start + 100)]
        metrics.set_known(models, peers)
        for model, peer in zip(models, peers, strict=True):
            metrics.payment("settled", peer, model, 1)
    assert len(label_values(metrics, "model") - {"other"}) == MAX_MODELS
    assert len(label_values(metrics, "peer") - {"other"}) == MAX_PEERS


def test_a_peer_that_is_away_for_a_while_keeps_its_series(metrics, value):
    metrics.set_known((), ())
    metrics.payment("settled", ALICE, "echo-1", 5)
    assert value("payments_total", outcome="settled", peer=ALICE) == 1


@pytest.mark.parametrize("name", ["", "m" * 129, "two\nlines", "\x1b[2J", "\ud800", "other"])
def test_a_name_that_no_label_should_hold_becomes_other(metrics, value, name):
    metrics.set_known([name], [])
    metrics.payment("settled", ALICE, name, 5)
    assert value("model_payment_msat_total", outcome="settled", model="other") == 5
    assert b"echo-1" in metrics.render()[0]


def test_unknown_words_become_other(metrics, value):
    metrics.refusal("because")
    metrics.client_disconnect("elsewhere")
    metrics.grpc_error("Reflect", "TEAPOT")
    metrics.request(CHAT, "echo-1", 999, "maybe", False, 0.1)
    assert value("refusals_total", reason="other") == 1
    assert value("client_disconnects_total", phase="other") == 1
    assert value("grpc_errors_total", method="other", code="other") == 1
    same = {"endpoint": CHAT, "model": "echo-1", "stream": "false"}
    assert value("requests_total", **same, status="other", payment="other") == 1


def test_routes_that_are_no_templates_do_not_multiply(metrics):
    for number in range(1000):
        metrics.request(f"/v1/{number}", "echo-1", 404, "none", False, 0.1)
    assert len(label_values(metrics, "endpoint")) <= 97
    assert "other" in label_values(metrics, "endpoint")


def test_counters_of_money_and_errors_begin_at_zero(metrics, value):
    for outcome in ("settled", "unknown", "not_paid"):
        assert value("payments_total", outcome=outcome, peer=ALICE) == 0
        assert value("model_payment_msat_total", outcome=outcome, model="echo-1") == 0
    assert value("undelivered_total", peer=BOB) == 0
    assert all(value("refusals_total", reason=reason) == 0 for reason in REASONS)
    for code in GRPC_CODES:
        assert value("grpc_errors_total", method="AcceptAndExecute", code=code) == 0


# -- exposition ---------------------------------------------------------------------------------


@pytest.fixture
def busy(metrics):
    metrics.build_info("0.1.0", "2")
    metrics.lcpd_transport("direct")
    metrics.request(CHAT, "echo-1", 200, "settled", True, 0.3)
    metrics.quote(ALICE, "echo-1", 0.009, 57_372)
    metrics.execute(ALICE, "echo-1", 0.08)
    metrics.first_byte(CHAT, "echo-1", 0.02)
    metrics.payment("settled", ALICE, "echo-1", 57_373)
    metrics.undelivered(ALICE, 1)
    metrics.loop_lag(0.001)
    metrics.snapshot(1, 1)
    metrics.budget("day", 100, 1)
    metrics.outstanding(1, 1, 1.0)
    metrics.peer_undelivered_msat(ALICE, 1)
    metrics.lnd(True, True, 1, 1, 0)
    metrics.fees_missing(0)
    metrics.provider_speed(ALICE, "lcp", 0.1, 30.0)
    metrics.node_up("n1", True)
    metrics.customers(1, 1, 1)
    metrics.settlements_leader(True)
    metrics.watch_keys(lambda: 0.5, lambda: False)
    metrics.refunds_withheld(1, 1)
    metrics.withdrawals_open("paying", 1, 1_000)
    metrics.withdrawal_unknown_age(1.0)
    return metrics


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain; version=0.0.4", parse_text),
        ("*/*", "text/plain; version=0.0.4", parse_text),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0",
            parse_openmetrics,
        ),
    ],
)
def test_it_is_rendered_in_the_format_that_is_asked_for(busy, accept, content_type, parse):
    body, told = busy.render(accept)
    assert told.startswith(content_type)
    families = {family.name: family for family in parse(body.decode())}
    for spec in SPECS:
        family = families[spec.full_name.removesuffix("_total")]
        assert family.type == spec.kind
        assert family.documentation == spec.help
        assert family.samples
    assert b"_created" not in body
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "python_info"} <= set(families)


async def test_a_scrape_of_a_large_catalog_does_not_hold_up_the_loop(metrics):
    models, peers = [f"m{n}" for n in range(200)], [f"{n:066x}" for n in range(200)]
    metrics.set_known(models, peers)
    for model, peer in zip(models, peers, strict=True):
        metrics.quote(peer, model, 0.01, 1)
        metrics.first_byte(CHAT, model, 0.01)
    scrape = asyncio.create_task(metrics.expose())
    turns = 0
    while not scrape.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 3
    body, content_type = scrape.result()
    assert body.count(b"\n") == metrics.render()[0].count(b"\n") > 10_000
    assert content_type.startswith("text/plain")


def test_two_gateways_in_one_process_do_not_share_counts(metrics, value):
    other = Metrics()
    other.streamed(5)
    assert value("streamed_bytes_total") == 0


def test_names_follow_the_rules_of_prometheus():
    def follows(spec):
        return (
            spec.help.endswith(".")
            and (spec.kind is MetricKind.COUNTER) == spec.name.endswith("_total")
            and "_ms_" not in spec.name
            and "_sat_" not in spec.name
            and list(spec.buckets) == sorted(set(spec.buckets))
            and bool(spec.buckets) == (spec.kind is MetricKind.HISTOGRAM)
        )

    assert [spec.name for spec in (*SPECS, *NODE_SPECS) if not follows(spec)] == []


def test_names_are_unique():
    names = [spec.name for spec in (*SPECS, *NODE_SPECS)]
    assert len(set(names)) == len(names)


def test_counting_is_cheap(metrics):
    """``python -m bench.growth`` measures its time."""
    calls = {
        "request": lambda: metrics.request(CHAT, "echo-1", 200, "settled", True, 0.05),
        "quote": lambda: metrics.quote(ALICE, "echo-1", 0.01, 57_000),
        "execute": lambda: metrics.execute(ALICE, "echo-1", 0.1),
        "first_byte": lambda: metrics.first_byte(CHAT, "echo-1", 0.1),
        "payment": lambda: metrics.payment("settled", ALICE, "echo-1", 57_000),
        "streamed": lambda: metrics.streamed(100),
        "journal_commit": lambda: metrics.journal_commit(8, 0.001),
        "runner_up_saving": lambda: metrics.runner_up_saving(100),
        "joined": lambda: metrics.joined("running"),
        "mismatch": lambda: metrics.mismatch(ALICE, "amount"),
    }
    for name, call in calls.items():
        call()
        lines = lines_executed(call)
        print(f"{name}: {lines} lines")
        assert lines < 60, name
