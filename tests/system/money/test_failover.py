"""Several peers sell the same: before a payment the gateway asks the next one or takes the cheapest, after it never."""

from contextlib import contextmanager

import pytest

from tests.support.forked import REAL_START
from tests.support.gateway import gateway
from tests.support.money import accepts, ask, metric, quoted, shops
from tests.support.node_thread import eventually

# No request fits: such a peer returns no quote.
BROKEN = "max_stream_bytes=1"


@contextmanager
def market(tmp_path, *lines, env=None, **settings):
    """A gateway and a node whose peers sell echo-1; see ``shops``."""
    env = {"LCP_GATEWAY_NODE_PEERS_FILE": shops(tmp_path, *lines), **(env or {})}
    env |= {f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    with gateway(env=env) as served:
        yield served


def price(answer) -> int:
    return int(answer.headers["x-lcp-price-msat"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [True, False])
def test_a_peer_without_a_quote_is_skipped(tmp_path, stream, first):
    lines = [f"Broken 5_000 {BROKEN}", "Sound 7_000"]
    with market(tmp_path, *(lines if first else lines[::-1])) as served:
        answer = ask(served, "x", stream=stream)
        assert answer.status == 200 and price(answer) == 7_000
        assert "x-lcp-runner-up-msat" not in answer.headers
        assert len(accepts(served)) == 1


def test_a_peer_that_is_too_dear_is_skipped_and_its_quote_cancelled(tmp_path):
    lines = ("Dear 90_000", "Fair 7_000", "Dearer 95_000")
    with market(tmp_path, *lines, max_price_msat=10_000) as served:
        for _ in range(4):
            answer = ask(served, "x")
            assert answer.status == 200 and price(answer) == 7_000
        dear_quotes = sum(event["price_msat"] > 10_000 for event in served.events("quote"))
        eventually(lambda: len(served.events("cancel")) == dear_quotes)
        assert {event["price_msat"] for event in served.events("accept")} == {7_000}


def test_when_all_are_too_dear_the_cheapest_can_still_be_taken(tmp_path):
    lines = ("Dear 90_000", "Dearest 99_000", "Cheapest 80_000")
    with market(tmp_path, *lines) as served:
        answer = ask(served, "x", headers={"X-Lcp-Max-Price-Msat": "10000"})
        assert answer.status == 402 and answer.error["lcp"]["price_msat"] == 80_000
        eventually(lambda: len(served.events("cancel")) == 2)
        assert {event["price_msat"] for event in served.events("cancel")} == {90_000, 99_000}
        taken = ask(served, "x", headers={"X-Lcp-Quote-Id": answer.error["lcp"]["quote_id"]})
        assert taken.status == 200 and price(taken) == 80_000


def test_no_more_peers_are_asked_than_set(tmp_path):
    lines = [f"B{at} 5_000 {BROKEN}" for at in range(3)]
    with market(tmp_path, *lines, quote_attempts=2) as served:
        answer = ask(served, "x")
        assert answer.status == 429 and answer.verdict == "none"
        assert served.events("accept") == []
        asked = metric(served, "grpc_errors_total", method="RequestQuote")
        assert asked == 2


@pytest.fixture(scope="module")
def fanned(tmp_path_factory):
    lines = ("Dear 9_000", "Cheap 5_000", "Middle 7_000", f"Broken 1_000 {BROKEN}")
    folder = tmp_path_factory.mktemp("fan")
    with market(folder, *lines, quote_fanout=4, quote_attempts=4) as served:
        yield served


@pytest.mark.parametrize("stream", [False, True])
def test_the_cheapest_of_several_quotes_is_taken_and_the_others_are_cancelled(fanned, stream):
    cancels = len(fanned.events("cancel"))
    answer = ask(fanned, "x", stream=stream)
    assert answer.status == 200 and price(answer) == 5_000
    assert answer.headers["x-lcp-runner-up-msat"] == "7000"
    eventually(lambda: len(fanned.events("cancel")) == cancels + 2)
    reported = fanned.events("cancel")[cancels:]
    assert {event["price_msat"] for event in reported} == {9_000, 7_000}
    assert accepts(fanned)[-1] == answer.headers["x-lcp-job-id"]


def test_a_quote_has_the_runner_up_too(fanned):
    quote = quoted(fanned, "how much?")
    assert (quote["price_msat"], quote["runner_up_msat"]) == (5_000, 7_000)
    answer = ask(fanned, "how much?", headers={"X-Lcp-Quote-Id": quote["id"]})
    assert price(answer) == 5_000 and answer.headers["x-lcp-runner-up-msat"] == "7000"


def test_what_was_saved_is_counted(fanned):
    before = metric(fanned, "runner_up_saving_msat_total")
    ask(fanned, "x")
    assert metric(fanned, "runner_up_saving_msat_total") == before + 2_000


def test_a_slow_peer_is_not_waited_for(tmp_path):
    # Long enough that its quote does not come while the machine stands still, and less than the node waits for one.
    lines = ("Slow 1_000 quote_latency_s=25.0", "Quick 5_000")
    with market(tmp_path, *lines, env=REAL_START, quote_fanout=2) as served:
        answer = ask(served, "x")
        assert answer.status == 200 and price(answer) == 5_000
        assert answer.headers.get("x-lcp-runner-up-msat") is None


@pytest.mark.parametrize("model", ["fault/no-route", "fault/execute-code-unavailable"])
def test_after_the_call_that_pays_no_other_peer_is_asked(tmp_path, model):
    """Two peers sell the same model; a failed payment is not repeated with the other one."""
    file = tmp_path / "peers.toml"
    peers = [f'[[peers]]\nalias = "{name}"\n[[peers.models]]\nname = "{model}"\n' for name in ("A", "B")]
    file.write_text("\n".join(peers))
    env = {"LCP_GATEWAY_NODE_PEERS_FILE": str(file), "LCP_GATEWAY_NODE_FAULTS": "true"}
    with gateway(env=env) as served:
        answer = ask(served, "x", model=model)
        assert answer.status >= 400
        assert len(served.events("accept")) == len(served.events("quote")) == 1


@contextmanager
def market_that_pauses(tmp_path, pause_s):
    """A gateway that pauses a peer after three failures. The node's own fault peer sells the model as well: two peers fail."""
    file = tmp_path / "peers.toml"
    file.write_text('[[peers]]\nalias = "A"\n[[peers.models]]\nname = "fault/wrong-hash"\n')
    env = {
        "LCP_GATEWAY_NODE_PEERS_FILE": str(file),
        "LCP_GATEWAY_NODE_FAULTS": "true",
        "LCP_GATEWAY_BREAKER_FAILURES": "3",
        "LCP_GATEWAY_BREAKER_PAUSE_S": str(pause_s),
    }
    with gateway(env=env) as served:
        yield served


def code(served):
    return ask(served, "x", model="fault/wrong-hash").error["code"]


def test_a_peer_that_fails_repeatedly_is_paused(tmp_path):
    with market_that_pauses(tmp_path, pause_s=600) as served:
        codes = [code(served) for _ in range(8)]
        assert codes == ["undelivered"] * 6 + ["no_provider"] * 2
        last = ask(served, "x", model="fault/wrong-hash")
        assert last.status == 503 and last.headers["x-should-retry"] == "true"
        assert last.verdict == "none" and "x-lcp-job-id" not in last.headers
        assert len(accepts(served)) == 6


def test_a_peer_is_tried_once_after_its_pause(tmp_path):
    with market_that_pauses(tmp_path, pause_s=10) as served:
        eventually(lambda: code(served) == "no_provider")
        failed = len(accepts(served))
        eventually(lambda: code(served) == "undelivered")
        # The next pause is twice as long.
        assert [code(served) for _ in range(3)].count("no_provider") >= 2, "one try each"
        assert len(accepts(served)) <= failed + 2
