"""After a mixed load of successes, failures and clients that leave: answers, logs and metrics agree with the wallet."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.node_thread import eventually
from tests.support.reloading import reloadable
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire

MODELS = (
    "echo-1",
    "echo-mini",
    "fault/no-route",
    "fault/already-paid",
    "fault/fail-after-payment",
    "fault/execute-code-unavailable",
    "fault/wrong-hash",
    "fault/result-failed",
    "fault/no-result",
    "fault/stream-cut",
    "fault/quote-refused",
    "fault/expired",
    "fault/expensive",
)
# These end with a timeout, or when their client leaves.
ENDLESS = ("fault/execute-hangs", "fault/stream-stalls")
JOBS = (len(MODELS) + len(ENDLESS)) * 4 + len(ENDLESS) * 2


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A gateway after the whole load; ``answers`` are those of the clients that read to the end."""
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_MAX_PRICE_MSAT": "10000000"}
    with reloadable(tmp_path_factory.mktemp("money"), env=settings) as it:
        served = it.running
        with ThreadPoolExecutor(16) as pool:
            served.answers = ask_each(pool, served, MODELS)
            for model in ENDLESS:
                for path in (CHAT, RESPONSES):
                    leave(served, path, model)
            # Not before: on a busy machine any other may take as long.
            it.take('timeout_execute_s = "5s"')
            served.answers += ask_each(pool, served, ENDLESS)
        eventually(lambda: get(served.port, "/readyz").json["jobs_in_flight"] == 0)
        eventually(lambda: len(lines(served)) == JOBS)
        # The purchase of a client that left goes on a little longer than its request.
        eventually(lambda: metric(served, "payments_total") == len(served.events("accept")))
        yield served


def ask_each(pool, served, models):
    """Request each model on both routes, streamed and not, at one time; return the answers."""
    asked = [
        pool.submit(post, served.port, path, document(path, model, stream=stream))
        for model in models
        for path in (CHAT, RESPONSES)
        for stream in (False, True)
    ]
    return [future.result() for future in asked]


def leave(served, path, model):
    """Request a stream, wait until its quote was taken and it has begun, if it does, and disconnect."""
    body = json.dumps(document(path, model, "a client that leaves", stream=True)).encode()
    accepted = len(served.events("accept"))
    with wire(served.port) as connection:
        connection.send(request_bytes("POST", path, body))
        eventually(lambda: len(served.events("accept")) > accepted)
        if model == "fault/stream-stalls":
            connection.read_until(b"\n\n")


def lines(served):
    """The log line of each request that could have bought something."""
    return [line for line in served.json_logs() if "total_ms" in line]


def prices(served, kind):
    return {event["job_id"]: event["price_msat"] for event in served.events(kind)}


def metric(served, name, **labels):
    text = get(served.port, "/metrics").body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"lcpgateway_{name}" and labels.items() <= sample.labels.items()
    )


def test_no_job_was_accepted_twice(loaded):
    accepts = Counter(event["job_id"] for event in loaded.events("accept"))
    assert accepts and set(accepts.values()) == {1}


def test_no_answer_says_that_nothing_was_paid_when_something_was(loaded):
    paid = prices(loaded, "paid")
    verdicts = Counter()
    for answer in loaded.answers:
        verdicts[answer.verdict] += 1
        job = answer.headers.get("x-lcp-job-id")
        if answer.verdict == "none":
            assert job not in paid
        else:
            assert answer.status == 200 or answer.headers["x-should-retry"] == "false"
        if answer.verdict == "settled":
            assert paid[job] == int(answer.headers["x-lcp-price-msat"])
    assert set(verdicts) == {"none", "settled", "unknown"}


def test_the_log_says_the_same_of_every_job(loaded):
    paid = prices(loaded, "paid")
    for line in lines(loaded):
        job = line.get("job_id")
        if line["payment"] == "none":
            assert job not in paid
        if line["payment"] == "settled":
            assert paid[job] == line["price_msat"]
    logged = {line["job_id"] for line in lines(loaded) if line["payment"] != "none"}
    assert set(paid) <= logged


def test_clients_that_left_are_logged_with_their_payment(loaded):
    left = [line for line in lines(loaded) if line["status"] == 499 or "went away" in str(line)]
    assert len(left) == len(ENDLESS) * 2
    assert {line["payment"] for line in left} == {"settled", "unknown"}


@pytest.mark.parametrize("verdict", ["settled", "unknown"])
def test_the_metrics_count_each_payment_once(loaded, verdict):
    logged = [line["price_msat"] for line in lines(loaded) if line["payment"] == verdict]
    assert metric(loaded, "payments_total", outcome=verdict) == len(logged)
    assert metric(loaded, "payment_msat_total", outcome=verdict) == sum(logged)
    assert metric(loaded, "model_payment_msat_total", outcome=verdict) == sum(logged)


def test_the_metrics_and_the_wallet_agree(loaded):
    paid = sum(prices(loaded, "paid").values())
    settled = metric(loaded, "payment_msat_total", outcome="settled")
    unknown = metric(loaded, "payment_msat_total", outcome="unknown")
    assert settled <= paid <= settled + unknown
    accepted = len(loaded.events("accept"))
    assert metric(loaded, "payments_total") == accepted
    assert metric(loaded, "payments_total", outcome="not_paid") == 4


def test_what_was_paid_and_never_came_is_counted(loaded):
    # A purchase whose client left has a log line of its own, and does not count against its provider.
    ends = [line for line in loaded.json_logs() if line.get("state") == "undelivered"]
    lost = {
        line["job_id"]: line["price_msat"]
        for line in ends
        if (line["ended_by"], line["received"]) != ("client", "part")
    }
    assert lost and len(lost) < len({line["job_id"] for line in ends})
    assert metric(loaded, "undelivered_total") == len(lost)
    assert metric(loaded, "undelivered_msat_total") == sum(lost.values())


def test_every_quote_is_in_the_histogram_of_prices(loaded):
    quoted = prices(loaded, "quote").values()
    assert metric(loaded, "quote_price_msat_count") == len(quoted)
    assert metric(loaded, "quote_price_msat_sum") == sum(quoted)


def test_every_request_is_counted_with_its_status(loaded):
    counted = Counter(str(answer.status) for answer in loaded.answers)
    for status, number in counted.items():
        if status != "200":
            of_status = metric(loaded, "requests_total", status=status, endpoint=CHAT)
            of_status += metric(loaded, "requests_total", status=status, endpoint=RESPONSES)
            assert of_status == number, status
    assert metric(loaded, "client_disconnects_total") == len(ENDLESS) * 2
    assert metric(loaded, "jobs_in_flight") == 0
