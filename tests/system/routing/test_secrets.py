"""No key, prompt, header or address reaches a node, a client or a log that must not have it."""

import json
import secrets
import socket
import threading
from contextlib import contextmanager

import pytest

from tests.support.http_node import HttpNodeThread, http_nodes
from tests.support.wire import CHAT, RESPONSES, get, post, request_bytes, send_raw
from tests.system.routing.providers import COMPLETIONS, EMBEDDINGS, ROUTE, ask, body_of, nodes_of, row, served_by, until

PROMPT = "zanzibar-quokka-prompt"
NODES_KEY = "sk-node-armadillo-key"
CLIENTS_KEY = "sk-client-xylophone-key"
OTHERS_KEY = "sk-other-periwinkle-key"
OUTPUT = "says: "
SECRETS = (PROMPT, NODES_KEY, CLIENTS_KEY, OTHERS_KEY, OUTPUT)
BEARER = {"Authorization": f"Bearer {CLIENTS_KEY}"}
PATHS = pytest.mark.parametrize("path", [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS])
STREAMED_OR_NOT = pytest.mark.parametrize("stream", [False, True])
SETTINGS = {"api_keys": CLIENTS_KEY, "log_level": "debug", "nodes_refresh_s": 60}
ENDPOINTS = ["chat", "responses", "completions", "embeddings"]


@pytest.fixture(scope="module")
def nodes():
    made = {
        "keyed": HttpNodeThread(name="keyed", models=("keyed-model", "nomic-embed-text"), api_key=NODES_KEY),
        # Its error repeats the received key, which is wrong.
        "wrong": HttpNodeThread(name="wrong", models=("wrong-model",)),
    }
    with http_nodes(*made.values()):
        yield made


@pytest.fixture(scope="module")
def served(nodes):
    rows = [
        row(nodes["keyed"], endpoints=ENDPOINTS, api_key=NODES_KEY, price_per_request_msat=100),
        row(nodes["wrong"], endpoints=ENDPOINTS, api_key=OTHERS_KEY),
    ]
    with served_by(*rows, **SETTINGS) as process:
        yield process


@pytest.fixture(autouse=True)
def nothing_is_said(served, nodes):
    """After each test, search everything that the process has written so far, and its metrics."""
    for node in nodes.values():
        node.requests.clear()
    yield
    nodes["wrong"].behave(fail_status=0, fail_body="", cut="", delay_s=0.0, raw=None)
    says_no_secret(served)


def says_no_secret(served):
    last = f"after-{secrets.token_hex(4)}"
    get(served.port, "/healthz", {"x-request-id": last})
    served.wait_for_log(last)
    said = served.logs + "\n".join(served.output)
    said += get(served.port, "/metrics", BEARER).body.decode()
    said += get(served.port, "/readyz").body.decode()
    for secret in SECRETS:
        assert secret not in said
    assert "Traceback" not in said and "Unhandled" not in said


def model_of(path, node="keyed"):
    return "nomic-embed-text" if path == EMBEDDINGS else f"{node}-model"


@PATHS
@STREAMED_OR_NOT
@pytest.mark.parametrize("is_auto", [False, True], ids=["named", "auto"])
def test_a_node_gets_its_own_key_and_nothing_of_the_clients_headers(served, nodes, path, stream, is_auto):
    headers = {
        **BEARER,
        "Cookie": f"a={OTHERS_KEY}",
        "X-Api-Key": OTHERS_KEY,
        "OpenAI-Organization": "org-1",
        "X-Forwarded-For": "10.0.0.1",
        "X-Custom": PROMPT,
        "User-Agent": "curious/1",
        "Accept-Encoding": "gzip",
        "x-request-id": "mine",
        "Idempotency-Key": secrets.token_hex(4),
    }
    model = "auto" if is_auto else model_of(path)
    answer = ask(served, model, PROMPT, path=path, stream=stream, headers=headers)
    assert answer.status == 200, answer.body
    [call] = [call for node in nodes.values() for call in node.calls()]
    node = nodes["keyed"] if call in nodes["keyed"].calls() else nodes["wrong"]
    key = NODES_KEY if node is nodes["keyed"] else OTHERS_KEY
    assert call.headers.pop("Authorization") == f"Bearer {key}"
    assert call.headers.pop("Host") == f"127.0.0.1:{node.port}"
    assert call.headers.pop("Content-Length") == str(len(call.body))
    # The gateway's own: the job's id, and nothing of the client's.
    assert call.headers.pop("Idempotency-Key") == answer.headers["x-lcp-job-id"]
    assert call.headers == {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "Accept": "*/*",
        "User-Agent": "lcp-gateway",
    }
    assert NODES_KEY not in str(answer) and OTHERS_KEY not in str(answer)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, COMPLETIONS])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_a_node_that_repeats_key_and_prompt_in_its_error(served, nodes, path, status):
    text = f"Incorrect API key: {OTHERS_KEY} Bearer {OTHERS_KEY}"
    body = {"error": {"message": text, "code": OTHERS_KEY, "type": OTHERS_KEY, "param": OTHERS_KEY}}
    nodes["wrong"].behave(fail_status=status, fail_body=json.dumps(body))
    answer = ask(served, "wrong-model", PROMPT, path=path, headers=BEARER)
    assert answer.status >= 400 and answer.error
    assert OTHERS_KEY not in str(answer) and PROMPT not in answer.body.decode()


@STREAMED_OR_NOT
@pytest.mark.parametrize("cut", ["before_head", "mid_stream"])
def test_a_node_that_breaks_off(served, nodes, stream, cut):
    nodes["wrong"].behave(cut=cut)
    answer = ask(served, "wrong-model", PROMPT, stream=stream, headers=BEARER)
    assert answer.status != 200 or not answer.whole
    assert "127.0.0.1" not in str(answer.body)


def test_a_node_that_takes_too_long(nodes):
    with served_by(row(nodes["wrong"], endpoints=ENDPOINTS, api_key=OTHERS_KEY, timeout_s=1), **SETTINGS) as process:
        nodes["wrong"].behave(delay_s=30.0)
        for stream in (False, True):
            answer = ask(process, "wrong-model", PROMPT, stream=stream, headers=BEARER)
            assert answer.status == 504 and answer.error
            assert "127.0.0.1" not in str(answer.body)
        says_no_secret(process)


@pytest.mark.parametrize("name", ["made-up-name", "auto:made-up-name", "org/made-up-name"])
@PATHS
def test_an_unknown_models_name_is_not_repeated(served, name, path):
    answer = ask(served, name, headers=BEARER, path=path)
    assert answer.status == 404 and "made-up" not in answer.body.decode()
    assert "made-up" not in get(served.port, "/metrics", BEARER).body.decode()


def test_route_requests_are_not_repeated(served):
    for query in ({PROMPT: 1}, {"providers": [PROMPT]}, {"prefer_size": PROMPT}):
        assert post(served.port, ROUTE, query, BEARER).status in {200, 400}
    looked = {**BEARER, "X-Lcp-Route-Only": "true"}
    assert ask(served, "auto", PROMPT, headers=looked).status == 200


def test_a_nodes_list_is_requested_with_its_own_key_only(served, nodes):
    """The list of models is requested with the node's own key only."""
    assert post(served.port, CHAT, body_of(CHAT, "unknown-model"), BEARER).status == 404
    for name, key in (("keyed", NODES_KEY), ("wrong", OTHERS_KEY)):
        for seen in nodes[name].requests:
            assert seen.headers["Authorization"] == f"Bearer {key}"


# No address of a request is used.


@contextmanager
def trap():
    """Run a server that the gateway must not call; return its URL and the received requests."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def listen():
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                came.append(1)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", came
        finally:
            stop.set()
            thread.join(60)


LURES = ("base_url", "api_base", "api_url", "url", "host", "endpoint", "proxy", "custom_host", "node")


@pytest.mark.parametrize("model", ["keyed-model", "auto"])
def test_no_address_in_a_request_is_called(served, nodes, model):
    with trap() as (place, came):
        url = f"http://{place}/v1"
        for lure in LURES:
            more = {lure: url, "metadata": {lure: url}, "extra_body": {lure: url}}
            assert ask(served, model, headers=BEARER, **more).status == 200
        for header in (
            *("X-Forwarded-Host", "Forwarded", "X-Original-URL", "X-Base-Url", "X-Portkey-Custom-Host"),
            *("Proxy", "Referer", "Origin", "X-Lcp-Node", "X-Upstream"),
        ):
            assert ask(served, model, headers={**BEARER, header: url}).status in {200, 403}
        raw = json.dumps(body_of(CHAT, model)).encode()
        assert send_raw(served.port, request_bytes("POST", CHAT, raw, {**BEARER, "Host": place})).status < 500
        absolute = request_bytes("POST", f"{url}/chat/completions", raw, BEARER)
        assert send_raw(served.port, absolute).status < 500
        for name in (url, f"node:{place}", f"{url}/keyed-model", f"openai/{url}"):
            assert ask(served, name, headers=BEARER).status == 404
        nodes["wrong"].behave(redirect=url)
        assert ask(served, "wrong-model", headers=BEARER).status == 502
        nodes["wrong"].behave(redirect="")
        assert not came
    until(lambda: nodes_of(served)["wrong"]["up"])
