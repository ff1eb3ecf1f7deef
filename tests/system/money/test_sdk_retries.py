"""The official SDK, with four tries: a quote is taken once, whatever fails after it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest

from lcp_gateway.node.faults import FAULTS, Stage
from tests.support.gateway import gateway
from tests.support.journaled import PAID_STATES, money_node, on_node, states
from tests.support.node_thread import eventually

HELLO = [{"role": "user", "content": "hello there, this is long enough for a few chunks"}]
RETRIES = 3
PAID_FAULTS = sorted(name for name, fault in FAULTS.items() if fault.stage is Stage.EXECUTE and fault.paid)
# These end with the deadline of the call: the tests of them have a gateway where it is short.
HANGING = ["execute-hangs", "stream-stalls"]
# Half of it is for a first try to have been accepted, on a machine that is busy.
DEADLINE_S = 10
NODE = """
[fault_settings]
flood_bytes = 33554432
slow_chunk_s = 0.02
big_result_bytes = 1048576

[[peers]]
alias = "cheap"

[[peers.models]]
name = "cheap"
base_msat = 0
"""
CALLS = {
    "chat": lambda client, model: client.chat.completions.create(model=model, messages=HELLO),
    "chat-stream": lambda client, model: list(client.chat.completions.create(model=model, messages=HELLO, stream=True)),
    "responses": lambda client, model: client.responses.create(model=model, input=HELLO),
    "responses-stream": lambda client, model: list(client.responses.create(model=model, input=HELLO, stream=True)),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), toml=NODE, faults=True) as running:
        yield running


@pytest.fixture
def seen(node):
    return node.mark()


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.db"


@pytest.fixture(scope="module")
def running(node, journal):
    with serving(node, journal, timeout_execute_s=60) as process:
        yield process


@pytest.fixture(scope="module")
def hasty_journal(tmp_path_factory):
    return tmp_path_factory.mktemp("hasty") / "journal.db"


@pytest.fixture(scope="module")
def hasty(node, hasty_journal):
    with serving(node, hasty_journal, timeout_execute_s=DEADLINE_S) as process:
        yield process


@contextmanager
def serving(node, journal, **settings):
    settings = on_node(
        node,
        journal_url=journal,
        # The default: a client that is about to try again finds its purchase still running.
        join_grace_s=10,
        # The losses of these tests would use up the trust in the peer.
        exposure_base_msat=0,
        **settings,
    )
    with gateway(embedded=False, env=settings) as process:
        yield process


@pytest.fixture(scope="module")
def wire():
    """One HTTP client for all tests, since to make one costs more than a test; and the requests that it sent."""
    sent = []
    hooks = {"request": [lambda request: sent.append(request.headers["x-stainless-retry-count"])]}
    with openai.DefaultHttpxClient(event_hooks=hooks) as http_client:
        yield http_client, sent


@pytest.fixture
def tries(wire):
    """The `x-stainless-retry-count` of each request of this test."""
    wire[1].clear()
    return wire[1]


@pytest.fixture
def client(running, wire):
    return openai.OpenAI(base_url=running.api_url, api_key="unused", http_client=wire[0], max_retries=RETRIES)


@pytest.fixture
def hasty_client(client, hasty):
    return client.with_options(base_url=hasty.api_url)


def call_and_fail(call: str, client: openai.OpenAI, model: str) -> Exception | None:
    try:
        CALLS[call](client, model)
    except (openai.APIError, ValueError) as error:
        return error
    return None


def is_bought_once(seen, journal) -> None:
    """Check that the node got one pay call, paid once, and the journal has the purchase as paid."""
    [job] = seen.jobs("accept")
    assert seen.jobs("paid") == [job]
    eventually(lambda: states(journal)[job] in PAID_STATES)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [name for name in PAID_FAULTS if name not in HANGING])
def test_a_failure_after_accept_is_accepted_once(client, seen, journal, fault, call):
    error = call_and_fail(call, client, f"fault/{fault}")
    is_bought_once(seen, journal)
    assert seen.count("quote") == 1
    if isinstance(error, openai.APIStatusError):
        assert error.response.headers["x-should-retry"] == "false"
        assert error.response.headers["x-lcp-payment"] in {"settled", "unknown"}


def all_ways_at_once(client: openai.OpenAI, model: str) -> list[Exception | None]:
    """Call in each way at the same time, where all of them wait."""
    with ThreadPoolExecutor(len(CALLS)) as pool:
        return list(pool.map(lambda call: call_and_fail(call, client, model), CALLS))


def each_is_bought_once(seen, journal) -> None:
    accepted = seen.jobs("accept")
    assert len(accepted) == len(set(accepted)) == len(CALLS) == seen.count("quote")
    assert sorted(seen.jobs("paid")) == sorted(accepted)
    eventually(lambda: all(states(journal)[job] in PAID_STATES for job in accepted))


@pytest.mark.parametrize("fault", HANGING)
def test_an_answer_that_never_ends_is_accepted_once(hasty_client, seen, hasty_journal, tries, fault):
    errors = all_ways_at_once(hasty_client, f"fault/{fault}")
    assert all(isinstance(error, openai.APIError) for error in errors)
    assert tries == ["0"] * len(CALLS)
    each_is_bought_once(seen, hasty_journal)


def test_a_client_that_times_out_and_tries_again_joins_its_purchase(hasty_client, seen, hasty_journal, tries):
    """The SDK's own time-out: it hangs up and asks again, and every try but the first is marked as one."""
    errors = all_ways_at_once(hasty_client.with_options(timeout=DEADLINE_S / 2), "fault/execute-hangs")
    expected = openai.APITimeoutError | openai.APIStatusError
    assert all(isinstance(error, expected) for error in errors)
    assert tries.count("0") == tries.count("1") == len(CALLS)
    each_is_bought_once(seen, hasty_journal)


def test_an_unpaid_request_is_bought_at_each_try_with_its_own_quote(client, seen):
    errors = all_ways_at_once(client.with_options(max_retries=1), "fault/no-route")
    for error in errors:
        assert isinstance(error, openai.APIStatusError)
        assert error.response.headers["x-lcp-payment"] == "none"
    accepted = seen.jobs("accept")
    assert len(accepted) == len(set(accepted)) == 2 * len(CALLS)
    assert seen.count("paid") == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.chat.completions.create(model="cheap", messages=HELLO, max_tokens=5),
        lambda client: list(client.chat.completions.create(model="cheap", messages=HELLO, max_tokens=5, stream=True)),
        lambda client: client.responses.create(model="cheap", input=HELLO, max_output_tokens=16),
    ],
    ids=["chat", "chat-stream", "responses"],
)
def test_a_price_that_no_channel_carries_is_asked_for_once(client, seen, tries, ask):
    """Once the SDK got the same price below 1,000 msat four times, each without a route."""
    with pytest.raises(openai.BadRequestError, match="ask for more output") as failed:
        ask(client)
    assert failed.value.response.headers["x-lcp-payment"] == "none"
    assert failed.value.body["lcp"]["price_msat"] < 1_000
    assert tries == ["0"]
    assert (len(seen.jobs("accept")), seen.count("paid")) == (1, 0)


def test_every_failure_after_accept_was_among_them():
    assert {"already-paid", *HANGING} <= set(PAID_FAULTS)
    assert len(PAID_FAULTS) >= 30
