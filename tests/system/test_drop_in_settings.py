"""Each OPENAI_SERVE_* variable, and the order in which a peer is chosen, held against the process."""

import pytest

from lcp_gateway.node.config import ModelConfig, NodeConfig, PeerConfig
from tests.support.gateway import gateway
from tests.support.node_thread import eventually, threaded_node
from tests.support.ports import free_address
from tests.support.wire import CHAT, RESPONSES, document, get, post

PEERS = (
    PeerConfig("Alice", (ModelConfig("shared"), ModelConfig("hers"))),
    PeerConfig("Bob", (ModelConfig("shared"), ModelConfig("his"))),
    PeerConfig("Asleep", (ModelConfig("sleeping"),), ready=False),
)


@pytest.fixture(scope="module")
def node():
    with threaded_node(NodeConfig(listen="127.0.0.1:0", peers=PEERS, faults=True)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_received(node):
    node.received.clear()


def serving(node, **settings):
    """The gateway with these OPENAI_SERVE_* variables, on a free port unless they name one."""
    env = {"HTTP_ADDR": "127.0.0.1:0", "LCPD_GRPC_ADDR": node.address, **settings}
    return gateway(embedded=False, env={f"OPENAI_SERVE_{k}": v for k, v in env.items()})


@pytest.fixture(scope="module")
def plain(node):
    with serving(node) as running:
        yield running.port


@pytest.fixture(scope="module")
def keyed(node):
    address = free_address()
    with serving(
        node, HTTP_ADDR=address, API_KEYS="sk-first, sk-second", MAX_PRICE_MSAT="20000", LOG_LEVEL="error"
    ) as running:
        assert f"127.0.0.1:{running.port}" == address
        yield running


@pytest.fixture(scope="module")
def mapped(node):
    bob, asleep = node.peer_id("Bob"), node.peer_id("Asleep")
    with serving(node, MODEL_MAP=f"shared={bob};hers={asleep}", DEFAULT_PEER_ID=node.peer_id("Alice")) as running:
        yield running.port


@pytest.fixture(scope="module")
def listed(node):
    with serving(node, MODEL_ALLOWLIST="his,unheard-of") as running:
        yield running.port


@pytest.fixture(scope="module")
def short_quotes(node):
    with serving(node, TIMEOUT_QUOTE="400ms") as running:
        yield running.port


@pytest.fixture(scope="module")
def short_jobs(node):
    with serving(node, TIMEOUT_EXECUTE="1.5s") as running:
        yield running.port


@pytest.fixture(scope="module")
def asleep_by_default(node):
    with serving(node, DEFAULT_PEER_ID=node.peer_id("Asleep"), MODEL_ALLOWLIST="shared") as running:
        yield running.port


@pytest.fixture(scope="module")
def unlisted(node):
    with serving(node, ALLOW_UNLISTED_MODELS="true") as running:
        yield running.port


def asked_peer(node) -> str:
    (quote,) = node.received.of("RequestQuote")
    return quote.peer_id


def test_a_key_is_required(keyed, node):
    answer = post(keyed.port, CHAT, document(model="shared"))
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error["type"] == "authentication_error"
    assert answer.error["code"] == "invalid_api_key"
    assert not node.received.of("RequestQuote")


@pytest.mark.parametrize("key", ["sk-first", "sk-second"])
def test_each_key_of_the_list_is_accepted(keyed, key):
    body = document(model="shared", max_tokens=10)
    bearer = {"Authorization": f"Bearer {key}"}
    assert post(keyed.port, CHAT, body, bearer).status == 200
    assert get(keyed.port, "/v1/models", bearer).status == 200


@pytest.mark.parametrize(
    "header", ["Bearer sk-firs", "Bearer sk-first, sk-second", "Basic sk-first", "sk-first", "Bearer"]
)
def test_an_invalid_key_is_refused(keyed, header):
    assert get(keyed.port, "/v1/models", {"Authorization": header}).status == 401


def test_healthz_needs_no_key(keyed):
    assert get(keyed.port, "/healthz").status == 200
    assert get(keyed.port, "/v1/models").status == 401


@pytest.mark.parametrize("stream", [False, True])
def test_a_price_over_the_cap_is_402_and_nothing_is_paid(keyed, node, stream):
    bearer = {"Authorization": "Bearer sk-first"}
    answer = post(keyed.port, CHAT, document(model="shared", stream=stream), bearer)
    assert answer.status == 402
    assert answer.error["type"] == "insufficient_quota"
    assert answer.error["lcp"]["price_msat"] > 20_000
    assert answer.verdict == "none" and answer.headers["x-should-retry"] == "false"
    asked = [call.peer_id for call in node.received.of("RequestQuote")]
    assert asked == [node.peer_id("Alice"), node.peer_id("Bob")], "both that sell it, each once"
    assert not node.received.of("AcceptAndExecute") + node.received.of("AcceptAndExecuteStream")


def test_the_log_level_is_kept(keyed):
    bearer = {"Authorization": "Bearer sk-first"}
    assert post(keyed.port, CHAT, document(model="shared", max_tokens=10), bearer).status == 200
    assert keyed.json_logs() == []


def test_a_peer_that_advertises_the_model_is_chosen(plain, node):
    assert post(plain, CHAT, document(model="his")).status == 200
    assert asked_peer(node) == node.peer_id("Bob")


def test_the_first_of_two_that_advertise_it_is_chosen(plain, node):
    assert post(plain, RESPONSES, document(RESPONSES, "shared")).status == 200
    assert asked_peer(node) == node.peer_id("Alice")


def test_a_model_that_no_peer_advertises_is_404(plain, node):
    answer = post(plain, CHAT, document(model="sleeping"))
    assert answer.status == 404
    assert answer.error["code"] == "model_not_available" and answer.error["param"] == "model"
    assert not node.received.of("RequestQuote")


def test_a_mapped_model_goes_to_its_peer(mapped, node):
    assert post(mapped, CHAT, document(model="shared")).status == 200
    assert asked_peer(node) == node.peer_id("Bob")


def test_a_mapped_peer_that_is_not_ready_is_503_and_no_other_is_asked(mapped, node):
    answer = post(mapped, CHAT, document(model="hers"))
    assert answer.status == 503 and answer.error["type"] == "server_error"
    assert not node.received.of("RequestQuote")


def test_other_models_go_to_the_default_peer_even_if_another_advertises_them(mapped, node):
    post(mapped, CHAT, document(model="his"))
    assert asked_peer(node) == node.peer_id("Alice")


def test_the_model_is_checked_before_a_default_peer_is_chosen(mapped, node):
    assert post(mapped, CHAT, document(model="unheard-of")).status == 404


def test_a_default_peer_that_is_not_ready_is_503(asleep_by_default, node):
    answer = post(asleep_by_default, CHAT, document(model="shared"))
    assert answer.status == 503 and answer.error
    assert not node.received.of("RequestQuote")


def test_the_allowlist_comes_before_the_default_peer(asleep_by_default):
    assert post(asleep_by_default, CHAT, document(model="hers")).status == 404


def test_a_model_off_the_allowlist_is_404_though_advertised(listed, node):
    answer = post(listed, CHAT, document(model="shared"))
    assert (answer.status, answer.error["code"]) == (404, "model_not_available")
    assert not node.received.of("RequestQuote")


def test_a_model_on_the_allowlist_is_served(listed, node):
    assert post(listed, CHAT, document(model="his")).status == 200
    assert asked_peer(node) == node.peer_id("Bob")


def test_a_listed_model_that_no_peer_advertises_goes_to_the_first_peer(listed, node):
    assert post(listed, CHAT, document(model="unheard-of")).status == 400
    assert asked_peer(node) == node.peer_id("Alice")


def test_unlisted_models_may_pass_to_the_first_peer(unlisted, node):
    assert post(unlisted, CHAT, document(model="unheard-of")).status == 400
    assert asked_peer(node) == node.peer_id("Alice")


def test_a_quote_past_its_time_is_504(short_quotes, node):
    answer = post(short_quotes, CHAT, document(model="fault/quote-slow"))
    assert answer.status == 504 and answer.verdict == "none"
    assert not node.received.of("CancelJob")


@pytest.mark.parametrize("stream", [False, True])
def test_an_execution_past_its_time_is_504_and_cancelled(short_jobs, node, stream):
    answer = post(short_jobs, CHAT, document(model="fault/execute-hangs", stream=stream))
    assert answer.status == 504 and answer.verdict == "unknown"
    eventually(lambda: node.received.of("CancelJob"))


def test_without_advertised_models_the_first_peer_gets_anything_and_without_peers_it_is_404():
    peers = (PeerConfig("Silent", ()), PeerConfig("Second", ()))
    with (
        threaded_node(NodeConfig(listen="127.0.0.1:0", peers=peers)) as silent,
        gateway(
            embedded=False,
            env={
                "OPENAI_SERVE_HTTP_ADDR": "127.0.0.1:0",
                "OPENAI_SERVE_LCPD_GRPC_ADDR": silent.address,
                "LCP_GATEWAY_PEERS_REFRESH_S": "0.1",
            },
        ) as running,
    ):
        assert post(running.port, CHAT, document(model="anything")).status == 400
        assert asked_peer(silent) == silent.peer_id("Silent")
        for alias in ("Silent", "Second"):
            silent.set_ready(alias, ready=False)
        eventually(lambda: get(running.port, "/readyz").status == 503)
        answer = post(running.port, CHAT, document(model="anything"))
        assert answer.status == 503
        assert answer.error["type"] == "server_error"
        assert len(silent.received.of("RequestQuote")) == 1
