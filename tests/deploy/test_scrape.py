"""A real Prometheus scrapes a real gateway and two nodes that trade, and every panel of the dashboard has data."""

import contextlib
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lcp_gateway.node.config import NodeConfig, derive_key
from lcp_gateway.telemetry.metric_table import SPECS
from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread
from tests.support.lnd_standin import LN, LndStandin, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.support.otlp_collector import collector
from tests.support.ports import free_port
from tests.support.prometheus import configuration, executable, prometheus
from tests.support.promql import alert_rules, dashboard_queries
from tests.support.trading_nodes import trading_nodes

pytestmark = pytest.mark.slow

FEE_MSAT = 1_000
OPERATOR, ADMIN = "sk-operator", "sk-admin"
TOPUP_MSAT = 100_000
ENVIRONMENT = {
    "LCP_GATEWAY_NODE_FAULTS": "true",
    # Only what hangs by design may reach it, on a busy machine too.
    "LCP_GATEWAY_TIMEOUT_EXECUTE_S": "15",
    "LCP_GATEWAY_MAX_PRICE_MSAT": "1000000",
    "LCP_GATEWAY_PEERS_REFRESH_S": "1",
    # echo-1 is sold by two peers at different prices.
    "LCP_GATEWAY_QUOTE_FANOUT": "2",
    "LCP_GATEWAY_RECONCILE_INTERVAL_S": "1",
    # The same for every payment, so that the books can be checked against the counters, which leave fees out.
    "LCP_GATEWAY_FEE_PPM": "0",
    "LCP_GATEWAY_FEE_BASE_MSAT": str(FEE_MSAT),
    # Large: one that is nearly spent fires an alert.
    "LCP_GATEWAY_BUDGET_HOUR_MSAT": "1000000000",
    "LCP_GATEWAY_BUDGET_DAY_MSAT": "2000000000",
    "LCP_GATEWAY_BUDGET_MONTH_MSAT": "3000000000",
    "LCP_GATEWAY_NODES_REFRESH_S": "0.5",
    # A gateway that sells: the operator's own key is not charged, and is the one that Prometheus uses.
    "LCP_GATEWAY_AUTH": "accounts",
    "LCP_GATEWAY_API_KEYS": OPERATOR,
    "LCP_GATEWAY_ADMIN_KEY": ADMIN,
    "LCP_GATEWAY_MARKUP_PERCENT": "10",
    # So that auto does not choose a model that fails by design.
    "LCP_GATEWAY_MODELS": json.dumps(
        {
            "echo-1": {"capabilities": ["sound"]},
            "echo-mini": {"capabilities": ["sound"]},
            "home-1": {"capabilities": ["sound", "home"]},
        }
    ),
}

# Panels that may be empty, or zero, when there is no problem.
MAY_BE_EMPTY = {
    "annotation Restarts": "the gateway does not restart during the test",
    "Age of the keys (B)": "it names a gateway whose keys are stale, and they are not",
    "Requests refused (A)": "the nodes refuse nothing of each other",
    "Problems (A)": "the nodes have none",
}
MAY_BE_ZERO = {
    "Jobs in flight (A)": "the load is over by then; its peak has a test of its own",
    "Event loop lag (A)": "a loop that is never late is what we want",
    "Event loop lag (B)": "the same",
    "Journal (A)": "a journal that can be written is what we want",
    "Trouble (A)": "the same",
    "Margin (A)": "the operator's own requests cost more than customers are charged",
    "Balances and funds (B)": "nothing is held once the load is over",
    "Stored items that went (B)": "what was to be stored could be",
    "Background jobs (A)": "they are over by then",
    "Spans (B)": "the collector takes what it is sent",
    "Background tasks restarted (A)": "no task ends by an error",
    "Log lines lost (A)": "the log is read",
    "Fees missing (A)": "lnd has told the fee of all that was paid",
    "Nodes that dialled in (A)": "none dials in during the test",
    "Nodes that dialled in and left (A)": "the same",
    "Usage that was not believed (A)": "the same",
    "Withdrawn by customers (A)": "no customer withdraws in the test",
    "Withdrawn by customers (B)": "the same",
    "Withdrawn by customers (C)": "the same",
    "Open withdrawals (A)": "the same",
    "Open withdrawals (B)": "the same",
    "Oldest unknown withdrawal (A)": "the same",
    "Earned by nodes (A)": "no customer's node is there",
    "Earned by nodes (B)": "the same",
    "Refunds withheld (A)": "one that is withheld fires an alert",
    "Refunds withheld (B)": "the same",
    "Spent by the node (B)": "the payments have a direct way",
    "Earned without a result (A)": "every sold job is delivered",
    "Paid for nothing (A)": "the same",
    "Messages dropped (A)": "no message comes twice or late",
    "Queue (A)": "the messages of short jobs do not wait",
    "Queue (B)": "the same",
    "Bytes in the queue (A)": "the same",
}

GOOD = ("echo-1", "echo-mini")
# Any model that does not fail by design, and the one that only a virtual node has, chosen and by its name.
OF_CHOICE = ("auto:sound", "auto:home", "home-1")
FAULTS = {
    "fault/no-route": "not_paid",
    "fault/fail-after-payment": "undelivered",
    "fault/wrong-hash": "undelivered",
    "fault/execute-hangs": "unknown",
    "fault/expensive": "price_limit",
    "fault/quote-code-internal": "gRPC error",
    "unknown/model": "model_not_found",
}
# Asked for once only: a few false quotes of one kind from one peer fire an alert, and must not here.
FALSE_QUOTE = "fault/wrong-price"


@dataclass(frozen=True)
class World:
    gateway: object
    prometheus: object
    node: HttpNodeThread


def ask(port, model, *, stream=False, read=True, key=None, credential=OPERATOR):
    """Send one request, and read its answer, or disconnect after its first bytes."""
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello " * 40}]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {credential}"}
    if key is not None:
        headers["Idempotency-Key"] = key
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if not read:
            answer.read(1)
            return answer.status
        # A broken-off stream is how a failure after the head ends.
        with contextlib.suppress(http.client.IncompleteRead):
            answer.read()
        return answer.status
    finally:
        connection.close()


def call(port, method, path, fields, credential=ADMIN):
    """Send one JSON document to the wallet or the administration, and return the one that comes back."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {credential}"}
        connection.request(method, path, json.dumps(fields), headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        return json.loads(answer.read())
    finally:
        connection.close()


def customer(port, **rules):
    """Make an account, and return the key of it."""
    account = call(port, "POST", "/api/admin/accounts", {"name": "alice"})
    fields = {"name": "laptop", **rules}
    return call(port, "POST", f"/api/admin/accounts/{account['id']}/keys", fields)["key"]


def sell(port, standin, watcher, round_number):
    """Have a customer top up, buy, get a refund and exceed a rate, and one without balance request; return the number of requests."""
    paying, poor = customer(port, requests_per_minute=2), customer(port)
    topup = call(port, "POST", "/api/wallet/topups", {"amount_msat": TOPUP_MSAT}, paying)
    standin.run(standin.settle(bytes.fromhex(topup["payment_hash"])))
    # Credited without a poll.
    watcher.wait_for_value("lcpgateway_topups_total", lambda value: value >= round_number)
    asked = (("echo-mini", paying, 200), ("fault/wrong-hash", paying, 502), ("echo-mini", poor, 402))
    for model, credential, status in asked:
        assert ask(port, model, credential=credential) == status, model
    # Where a minute of the clock ends meanwhile, some more are served before one exceeds the rate.
    count = len(asked) + 1
    while (status := ask(port, "echo-mini", credential=paying)) != 429:
        assert status == 200
        count += 1
    return count


def load(port, round_number):
    """Send one round of everything, good and bad, streamed and not; return how many requests that were.

    In each round one client asks twice with the same key, and one goes away; in the first there is a false quote.
    """
    with ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(ask, port, model, stream=stream)
            for model in (*GOOD, *OF_CHOICE, *FAULTS)
            for stream in (False, True)
        ]
        answers.append(pool.submit(ask, port, "echo-slow", stream=True, read=False))
        if round_number == 1:
            answers.append(pool.submit(ask, port, FALSE_QUOTE))
        # One after the other, so that the second finds the first one's answer.
        repeats = [ask(port, "echo-mini", key=f"round {round_number}") for _ in range(2)]
        return len([answer.result(120) for answer in answers]) + len(repeats)


def leave_to_the_background(port):
    """Begin two background jobs, of which the second evicts the first from the store."""
    for number in range(2):
        fields = {"model": "echo-mini", "input": f"hello {number}", "background": True}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {OPERATOR}"}
        connection.request("POST", "/v1/responses", json.dumps(fields), headers)
        assert json.loads(connection.getresponse().read())["status"] == "queued"
        connection.close()


@contextmanager
def lnd(folder: Path) -> Iterator[LndStandin]:
    """Run the lnd of the embedded node in a thread; it answers, and has no payments."""
    standin = LndStandin(folder, key=derive_key(NodeConfig().seed, "node"))
    standin.balance = LN.ChannelBalanceResponse(local_balance=LN.Amount(sat=5_000, msat=5_000_000))
    with in_a_thread(standin):
        yield standin


def scrape_key(folder):
    """Write the operator's key to the file that Prometheus reads."""
    file = folder / "key"
    file.write_text(OPERATOR)
    return file


def surroundings(lnd_address, node, traces):
    """Return the environment of a gateway with this lnd, this node, and a node that never answers.

    Its traces go to the collector, and it stores one item of a credential.
    """
    nodes = [
        {"name": "home", "base_url": node.base_url, "price_per_request_msat": 2_000},
        {"name": "away", "base_url": f"http://127.0.0.1:{free_port()}/v1"},
    ]
    return {
        **ENVIRONMENT,
        **lnd_settings(lnd_address),
        "LCP_GATEWAY_NODES": json.dumps(nodes),
        "LCP_GATEWAY_OTLP_ENDPOINT": traces.endpoint,
        "LCP_GATEWAY_MAX_STORED_ITEMS": "1",
    }


def go_and_come_back(node, watcher):
    """Have the node fail its list of models until the gateway marks it down, and then recover."""
    for status, is_up in ((503, 0), (200, 1)):
        node.behave(models_status=status)
        watcher.wait_for(
            'lcpgateway_node_up{node="home"}', lambda found, is_up=is_up: [value for _, value in found] == [is_up]
        )


# All but the client that goes away.
ANSWERED = 'sum(lcpgateway_requests_total{endpoint="/v1/chat/completions", status!="499"})'


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    executable()
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        lnd(tmp_path_factory.mktemp("lnd")) as standin,
        HttpNodeThread("home", ("home-1",)) as node,
        collector() as traces,
        gateway(env=surroundings(standin.address, node, traces)) as running,
        trading_nodes() as traders,
        prometheus(
            configuration(f"127.0.0.1:{running.port}", *traders, key_file=scrape_key(folder)), folder
        ) as watcher,
    ):
        watcher.wait_for("up", lambda found: [value for _, value in found] == [1, 1, 1])
        watcher.wait_for('lcpgateway_node_up{node="home"} == 1', bool)
        # The first round makes the series, the second makes them grow.
        answered = 0
        for round_number in (1, 2):
            answered += load(running.port, round_number) - 1
            answered += sell(running.port, standin, watcher, round_number)
            leave_to_the_background(running.port)
            for expr, least in (
                (ANSWERED, answered),
                ('lcpgateway_client_disconnects_total{phase="stream"}', round_number),
                ('lcpgateway_background_jobs_total{ended_as="completed"}', 2 * round_number),
            ):
                watcher.wait_for_value(expr, lambda value, least=least: value >= least)
        go_and_come_back(node, watcher)
        watcher.wait_for_value("lcpgateway_event_loop_lag_seconds_count", lambda value: value >= 2)
        # The gateway reads its books every few seconds, and asks lnd about what it finds there.
        for expr in (
            "lcpgateway_outstanding_unknown_purchases == 4",
            'lcpgateway_reconciled_total{result="still_unknown"} >= 4',
        ):
            watcher.wait_for(expr, bool)
        yield World(running, watcher, node)


def filled_in(expr):
    """Substitute the variables as Grafana does."""
    values = {"job": "lcp-gateway", "instance": ".+", "__rate_interval": "30m", "__range": "30m"}
    # "$1" in label_replace is Prometheus' own.
    return re.sub(r"\$([a-z_]\w*)", lambda found: values[found[1]], expr)


def expect(world, *expected):
    """Wait until the sum of each selector has its value: a scrape that took too long leaves none until the next one."""
    for selector, value in expected:
        world.prometheus.wait_for_value(f"sum({selector})", lambda found, value=value: found == value)


def test_queries_of_the_dashboard_have_data_after_a_load(world, subtests):
    for query in dashboard_queries():
        if query.where in MAY_BE_EMPTY:
            world.prometheus.query(filled_in(query.expr))
            continue
        with subtests.test(query.where):
            may_be_zero = query.where in MAY_BE_ZERO
            world.prometheus.wait_for(
                filled_in(query.expr),
                lambda found, may_be_zero=may_be_zero: any(may_be_zero or value > 0 for _, value in found),
            )


def test_every_metric_of_the_table_arrives(world):
    names = set(world.prometheus.get("/api/v1/label/__name__/values"))
    assert {series for spec in SPECS for series in spec.series} <= names
    assert not [name for name in names if name.endswith("_created")]


def test_the_money_on_the_dashboard_is_the_money_that_the_node_saw(world):
    paid_msat = sum(event["price_msat"] for event in world.gateway.events("paid"))
    assert paid_msat > 0
    expect(world, ('lcpgateway_payment_msat_total{outcome=~"settled|unknown", peer!~"node:.*"}', paid_msat))


def test_failures_are_counted_as_what_they_were(world):
    expect(
        world,
        ('lcpgateway_payments_total{outcome="not_paid"}', 4),
        ('lcpgateway_payments_total{outcome="unknown"}', 4),
        ('lcpgateway_refusals_total{reason="price_limit"}', 4),
        ('lcpgateway_refusals_total{reason="model_not_found"}', 4),
    )
    for selector, least in (
        ('lcpgateway_grpc_errors_total{method="RequestQuote", code="INTERNAL"}', 4),
        ("lcpgateway_undelivered_total", 8),
        ('lcpgateway_requests_total{model="other"}', 4),
    ):
        world.prometheus.wait_for_value(f"sum({selector})", lambda found, least=least: found >= least)


def test_the_books_say_the_same_as_the_counters(world):
    # The books are read every few seconds, so the last entries may be missing yet.
    for booked, counted_msat, times in (
        (
            "lcpgateway_outstanding_unknown_msat",
            'lcpgateway_payment_msat_total{outcome="unknown"}',
            'lcpgateway_payments_total{outcome="unknown"}',
        ),
        ("lcpgateway_peer_undelivered_msat", "lcpgateway_undelivered_msat_total", "lcpgateway_undelivered_total"),
    ):
        with_fees = f"sum({counted_msat}) + sum({times}) * {FEE_MSAT}"
        world.prometheus.wait_for(f"sum({booked}) == {with_fees}", bool)
    expect(
        world,
        ('lcpgateway_joined_total{how="replayed"}', 2),
        ("lcpgateway_joined_total", 2),
        ('lcpgateway_quote_mismatches_total{mismatch="amount"}', 1),
        ("lcpgateway_quote_mismatches_total", 1),
        ('lcpgateway_reconciled_total{result!="still_unknown"}', 0),
        ("lcpgateway_lnd_local_balance_msat", 5_000_000),
    )


def test_what_was_bought_from_a_node_is_counted_as_its_own(world):
    calls = len(world.node.calls())
    settled = 'outcome="settled", peer="node:home"'
    assert calls >= 8
    expect(
        world,
        (f"lcpgateway_payments_total{{{settled}}}", calls),
        (f"lcpgateway_payment_msat_total{{{settled}}}", 2_000 * calls),
        ('lcpgateway_requests_total{model="auto", status="200"}', 8),
        ("lcpgateway_routing_choices_total", 8),
        ("lcpgateway_routing_score_count", 8),
    )
    # Of two that are asked the cheaper is taken, so that the node may be bought from where it was put second.
    put_first = 'sum(lcpgateway_routing_choices_total{source="node", peer="node:home"})'
    world.prometheus.wait_for_value(put_first, lambda value: 4 <= value <= calls - 4)


def test_a_model_that_only_a_node_has_is_known_by_its_name(world):
    expect(world, ('lcpgateway_requests_total{model="home-1"}', 4))


def test_what_customers_have_is_what_they_paid_in_less_what_they_were_charged(world):
    expect(world, ("lcpgateway_topups_total", 2), ("lcpgateway_topups_msat_total", 2 * TOPUP_MSAT))
    charged_msat = world.prometheus.wait_for_value("sum(lcpgateway_charged_msat_total)", lambda value: value > 0)
    expect(
        world,
        # Read from the books every few seconds.
        ("lcpgateway_customers_balance_msat", 2 * TOPUP_MSAT - charged_msat),
        ("lcpgateway_customers", 4),
        ("lcpgateway_customers_held_msat", 0),
        ("lcpgateway_settlements_leader", 1),
        ('lcpgateway_refusals_total{reason="rate_limit"}', 2),
        ('lcpgateway_refusals_total{reason="balance"}', 2),
    )


def test_nodes_that_went_down_are_distinguished_from_nodes_that_never_answered(world):
    for name, expected in (
        ("node_up", {("home", None): 1, ("away", None): 0}),
        ("node_changes_total", {("home", "down"): 1, ("home", "up"): 1, ("away", "down"): 0, ("away", "up"): 0}),
    ):
        found = world.prometheus.wait_for(f"lcpgateway_{name}", bool)
        assert {(labels["node"], labels.get("to")): value for labels, value in found} == expected


def test_jobs_in_flight_rose_with_the_load_and_fell_with_its_end(world):
    ((_, peak),) = world.prometheus.query("max_over_time(lcpgateway_jobs_in_flight[30m])")
    assert peak >= 1
    expect(world, ("lcpgateway_jobs_in_flight", 0))


def test_the_rules_are_evaluated_without_errors_and_the_right_ones_fire(world):
    groups = world.prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in alert_rules()}
    assert {rule["health"] for rule in rules} == {"ok"}
    firing = world.prometheus.wait_for(
        'ALERTS{alertstate="firing"}', lambda found: "LcpPaymentUnknown" in {labels["alertname"] for labels, _ in found}
    )
    # Where all this takes minutes, what is so by design (a node that never answers) has been so for that long.
    lasting = {rule["name"] for rule in rules if rule["duration"] >= 300}
    assert {labels["alertname"] for labels, _ in firing} - lasting == {"LcpPaymentUnknown"}


def last_error(watcher, job):
    """Return why the last scrape of a job failed, or nothing."""
    targets = watcher.get("/api/v1/targets")["activeTargets"]
    return "".join(target["lastError"] for target in targets if target["labels"]["job"] == job)


def test_with_keys_the_commented_section_of_the_configuration_is_what_is_needed(tmp_path):
    executable()
    key = "sk-scrape-me"
    (tmp_path / "key").write_text(key)
    with gateway(env={"LCP_GATEWAY_API_KEYS": f"another,{key}"}) as running:
        target = f"127.0.0.1:{running.port}"
        config = configuration(target, key_file=tmp_path / "key")
        (without,) = configuration(target)["scrape_configs"]
        config["scrape_configs"].append({**without, "job_name": "keyless"})
        with prometheus(config, tmp_path) as watcher:
            watcher.wait_for('up{job="lcp-gateway"} == 1', bool)
            # Not for a scrape that took too long, which may happen to either.
            eventually(lambda: "401" in last_error(watcher, "keyless"))
            watcher.wait_for('up{job="keyless"} == 0', bool)
        assert key not in running.logs
