"""One of two nodes answers 200 at once, but never with a result: it must not be charged, stored or preferred."""

import json

import pytest

from tests.support.http_node import HttpNodeThread, http_nodes
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, get, post
from tests.system.routing.providers import body_of, row, served_by
from tests.system.selling.seller import Office, bearer, selling

pytestmark = pytest.mark.slow

PRICE_MSAT = 1_000
FILLED_MSAT = 1_000_000
ERROR = b'{"error":{"message":"no","type":"server_error","param":null,"code":"overloaded"}}'
LIES = {
    "error": {"raw": ERROR},
    "nothing": {"raw": b""},
    "white space": {"raw": b" \n"},
    "page": {"raw": b"<!DOCTYPE html><p>Log in", "content_type": "text/html"},
    "error event": {"raw": b"data: " + ERROR + b"\n\ndata: [DONE]\n\n", "content_type": "text/event-stream"},
}  # fmt: skip
# The number of errors until it is avoided, and of further requests that show it.
SOON = 5
MORE = 10


@pytest.fixture(scope="module")
def nodes():
    lying, honest = (HttpNodeThread(name=name, models=("m",)) for name in ("lying", "honest"))
    lying.server.models += ("lies",)
    # An error is fast, and an answer takes its time.
    honest.behave(delay_s=0.05)
    with http_nodes(lying, honest):
        yield lying, honest


@pytest.fixture
def gateway(nodes):
    """A gateway that has measured nothing yet."""
    rows = [row(node, endpoints=["chat", "responses"], price_per_request_msat=PRICE_MSAT) for node in nodes]
    # On a busy machine a test may take longer than the usual pause, after which a node is tried once more.
    sold = selling(markup_percent=0, breaker_failures=5, breaker_pause_s=600)
    settings = {name.removeprefix("LCP_GATEWAY_").lower(): value for name, value in sold.items()}
    with served_by(*rows, **settings) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "stream", "lie"),
    [
        (CHAT, False, "error"),
        (CHAT, False, "page"),
        (CHAT, True, "error event"),
        (CHAT, True, "nothing"),
        (RESPONSES, False, "white space"),
        (RESPONSES, True, "error"),
        (RESPONSES, True, "error event"),
    ],
)
def test_auto_avoids_a_node_that_only_returns_errors(nodes, gateway, path, stream, lie):
    lying, _ = nodes
    lying.behave(raw=None, content_type="")
    lying.behave(**LIES[lie])
    before = len(lying.calls())
    customer = Office(gateway.port).customer(FILLED_MSAT)
    delivered = 0
    used = []
    for number in range(SOON + MORE):
        body = body_of(path, "auto", f"hello {number}", stream=stream, store=True)
        answer = post(gateway.port, path, body, bearer(customer.key))
        used.append(len(lying.calls()) - before)
        is_good = answer.status == 200 and b"honest" in answer.body
        delivered += is_good
        if not is_good and answer.status != 200:
            assert answer.error["code"] == "undelivered"
            assert answer.error["lcp"]["charged_msat"] == 0
            assert answer.headers["x-lcp-payment"] == "settled"
    assert 0 < used[-1] <= SOON, "it is left after so many of its errors"
    assert delivered == SOON + MORE - used[-1]
    eventually(lambda: customer.balance()["held_msat"] == 0)
    assert customer.balance()["balance_msat"] == FILLED_MSAT - delivered * PRICE_MSAT
    if path == CHAT:
        stored = get(gateway.port, CHAT, bearer(customer.key)).json["data"]
        assert len(stored) == delivered


@pytest.mark.parametrize("lie", ["error", "nothing"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_error_result_is_a_failure_in_every_later_answer(nodes, gateway, stream, lie):
    lying, _ = nodes
    lying.behave(raw=None, content_type="")
    lying.behave(**LIES[lie])
    customer = Office(gateway.port).customer(FILLED_MSAT)
    headers = bearer(customer.key)
    body = body_of(RESPONSES, "lies", background=True)
    job = post(gateway.port, RESPONSES, body, headers).json["id"]

    def job_status():
        return get(gateway.port, f"{RESPONSES}/{job}", headers).json["status"]

    eventually(lambda: job_status() not in {"queued", "in_progress"})
    assert job_status() == "failed"
    before = len(lying.calls())
    again = {**headers, "Idempotency-Key": f"again-{stream}-{lie}"}
    body = body_of(RESPONSES, "lies", stream=stream, store=True)
    first, second = (post(gateway.port, RESPONSES, body, again) for _ in range(2))
    assert (first.status, first.error["code"]) == (502, "undelivered")
    assert (second.status, second.error["code"]) == (502, "undelivered")
    assert len(lying.calls()) == before + 1, "and it is not bought again"
    eventually(lambda: customer.balance()["held_msat"] == 0)
    assert customer.balance()["balance_msat"] == FILLED_MSAT


def test_a_job_that_streams_ends_with_the_error_of_its_provider_and_with_no_second_one(nodes, gateway):
    """A client gets exactly one terminal event."""
    lying, _ = nodes
    failed = {"type": "response.failed", "response": {"id": "r", "status": "failed"}}
    created = {"type": "response.created", "response": {"id": "r", "status": "in_progress"}}
    events = [f"data: {json.dumps(event)}\n\n".encode() for event in (created, failed)]
    lying.behave(raw=b"".join(events), content_type="text/event-stream")
    customer = Office(gateway.port).customer(FILLED_MSAT)
    body = body_of(RESPONSES, "lies", background=True, stream=True)
    came = post(gateway.port, RESPONSES, body, bearer(customer.key)).body
    assert came.count(b'"response.failed"') == 1
    assert b"response.completed" not in came
    eventually(
        lambda: customer.balance() == {"balance_msat": FILLED_MSAT, "held_msat": 0, "available_msat": FILLED_MSAT}
    )
