"""The middleware of every answer: request ids, keys, CORS, metrics, and the limit on concurrent jobs."""

import json
import re
import time

import pytest

from tests.support.gated_node import gated_node
from tests.support.gateway import gateway
from tests.support.journaled import on_node
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire

KEY = "sk-a-key"
BEARER = {"Authorization": f"Bearer {KEY}"}
ORIGIN = "https://app.example"
LIMIT = 2


@pytest.fixture(scope="module")
def plain():
    """No keys; a low limit on jobs, and an address of its own for the metrics."""
    settings = {
        "LCP_GATEWAY_NODE_FAULTS": "true",
        "LCP_GATEWAY_MAX_CONCURRENT_REQUESTS": str(LIMIT),
        "LCP_GATEWAY_METRICS_ADDR": free_address(),
    }
    with gateway(env=settings) as running:
        running.metrics_port = int(settings["LCP_GATEWAY_METRICS_ADDR"].rpartition(":")[2])
        yield running


@pytest.fixture(scope="module")
def guarded():
    """With keys, and an origin whose pages may call."""
    settings = {"LCP_GATEWAY_API_KEYS": KEY, "LCP_GATEWAY_CORS_ORIGINS": f"{ORIGIN},https://other.example"}
    with gateway(env=settings) as running:
        yield running.port


KINDS_OF_ANSWER = {
    "a result": (CHAT, document(), 200),
    "a stream": (CHAT, document(stream=True), 200),
    "an unknown model": (CHAT, document(model="unheard-of"), 404),
    "a bad body": (RESPONSES, b"{", 400),
    "a large body": (RESPONSES, b" " * (1 << 20) + b" ", 413),
    "a wrong method": ("/v1/models", b"{}", 405),
    "an unknown route": ("/nowhere", b"{}", 404),
    "a failed quote": (CHAT, document(model="fault/quote-refused"), 429),
    "a failed payment": (CHAT, document(model="fault/no-route"), 400),
    "a failed execution": (CHAT, document(model="fault/fail-after-payment", stream=True), 429),
}


@pytest.mark.parametrize(("path", "body", "status"), KINDS_OF_ANSWER.values(), ids=KINDS_OF_ANSWER.keys())
def test_every_answer_has_an_id_a_time_and_a_verdict(plain, path, body, status):
    own = post(plain.port, path, body)
    assert own.status == status
    assert re.fullmatch(r"req_[0-9a-f]{32}", own.headers["x-request-id"])
    assert int(own.headers["openai-processing-ms"]) >= 0
    assert own.verdict in {"none", "settled"}
    claimed = post(plain.port, path, body, {"X-Request-Id": "my-id_1:2/3"})
    assert claimed.headers["x-request-id"] == "my-id_1:2/3"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/v1/models/echo-1"])
def test_every_answer_to_a_get_has_them_too(plain, path):
    answer = get(plain.port, path, {"x-request-id": "abc"})
    assert answer.status == 200 and answer.headers["x-request-id"] == "abc"
    assert answer.verdict == "none"


@pytest.mark.parametrize("claimed", ["", "x" * 129, "a b", "a\tb", 'a"b', "<script>", "caf\u00e9", "a{b}", "a\x7f"])
def test_an_invalid_request_id_is_replaced(plain, claimed):
    answer = get(plain.port, "/healthz", {"x-request-id": claimed})
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.status in {200, 400}


def test_ids_are_in_the_log_line(plain):
    post(plain.port, CHAT, document(), {"x-request-id": "look-for-me"})
    plain.wait_for_log('"request_id":"look-for-me"')


@pytest.mark.parametrize("name", ["fault/no-route", "fault%2Fno-route"])
def test_a_model_is_shown_by_its_name_whatever_is_in_it(plain, name):
    answer = get(plain.port, f"/v1/models/{name}")
    assert answer.status == 200 and answer.json["id"] == "fault/no-route"
    missing = get(plain.port, f"/v1/models/{name}-at-all")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_is_refused_before_a_peer_is_asked(plain, stream):
    before = plain.events()
    body = {"model": "echo-1", "input": "hi", "conversation": "conv_1", "stream": stream}
    answer = post(plain.port, RESPONSES, body)
    assert (answer.status, answer.error["param"]) == (400, "conversation")
    assert answer.headers["x-lcp-payment"] == "none"
    assert plain.events() == before


# The welcome of / and /v1.


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_the_root_describes_the_gateway_and_its_use(path, plain, guarded):
    for port, key in ((plain.port, "none is asked for"), (guarded, "one of this gateway's keys")):
        host = {"Host": f"127.0.0.1:{port}"}
        answer = get(port, path, host)
        assert answer.status == 200 and key in answer.json["api_key"]
        assert answer.json["base_url"] == f"http://127.0.0.1:{port}/v1"
        page = get(port, path, {**host, "Accept": "text/html,*/*;q=0.8"})
        if path == "/":
            assert (page.status, page.headers["location"]) == (303, "/console/")
            continue
        assert page.headers["content-type"].startswith("text/html")
        assert f"http://127.0.0.1:{port}/v1".encode() in page.body
        assert page.headers["x-content-type-options"] == "nosniff"


def test_a_welcome_does_not_repeat_the_host_header(plain):
    for host in ("evil.example", "<b>x</b>", '"onload=x'):
        for accept in ("text/html", "*/*"):
            answer = get(plain.port, "/", {"Host": host, "Accept": accept})
            assert host.encode() not in answer.body


def test_the_banner_has_the_base_url(plain):
    output = "\n".join(plain.output)
    assert f"base URL for OpenAI clients: {plain.api_url} (model auto)" in output
    assert f"web console: {plain.base_url}/console/" in output


def test_the_console_is_served_from_the_package_unless_it_is_off(plain):
    page = get(plain.port, "/console/")
    assert page.status == 200 and b"<!doctype html>" in page.body.lower()
    assert get(plain.port, "/console/", {"Host": "evil.example"}).status == 421


@pytest.mark.parametrize("path", ["/v1/responses/compact", "/api/agent/x/v1/responses/compact"])
def test_unknown_routes_are_not_found(plain, path):
    answer = post(plain.port, path, {})
    assert (answer.status, answer.error["code"]) == (404, "not_found")


def test_auto_is_listed_unless_it_is_not_wanted(plain):
    listed = get(plain.port, "/v1/models").json["data"]
    ids = [model["id"] for model in listed]
    assert "auto" in ids and ids == sorted(ids)
    assert all(abs(model["created"] - time.time()) < 3_600 for model in listed)
    fields = {frozenset({*model["lcp"]} - {"alias_of"}) for model in listed}
    assert len(fields) == 1
    with gateway(env={"LCP_GATEWAY_LIST_AUTO": "false"}) as other:
        assert "auto" not in {model["id"] for model in get(other.port, "/v1/models").json["data"]}
        assert get(other.port, "/v1/models/auto").status == 200


def test_heartbeats_stand_between_events_and_change_nothing_else(tmp_path):
    heartbeat = b": heartbeat\n\n"
    with (
        gated_node(tmp_path) as (node, gate),
        gateway(embedded=False, env=on_node(node, heartbeat_s=0.02)) as running,
        wire(running.port) as connection,
    ):
        connection.send(request_bytes("POST", CHAT, json.dumps(document(stream=True)).encode()))
        connection.await_bytes(heartbeat, times=4)
        gate.touch()
        answer = connection.answer()
    assert answer.whole and answer.body.count(heartbeat) > 3
    rest = answer.body.replace(heartbeat, b"")
    assert b"heartbeat" not in rest
    *events, done = rest.split(b"\n\n")[:-1]
    assert done == b"data: [DONE]"
    for event in events:
        assert json.loads(event.removeprefix(b"data: "))["object"] == "chat.completion.chunk"


def test_no_two_ids_are_the_same(plain):
    ids = [get(plain.port, "/healthz").headers["x-request-id"] for _ in range(20)]
    assert len(set(ids)) == 20


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "Bearer sk-a-ke", "Token " + KEY])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nowhere", CHAT])
def test_without_a_key_every_route_is_401(guarded, header, path):
    headers = {} if header is None else {"Authorization": header}
    answer = get(guarded, path, headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error["type"] == "authentication_error"
    assert answer.error["code"] == "invalid_api_key"
    assert answer.headers["x-should-retry"] == "false"


def test_a_key_is_asked_for_before_the_body_is_read(guarded):
    with wire(guarded) as connection:
        connection.send(request_bytes("POST", CHAT, headers={"Content-Length": "1000"}))
        assert connection.answer().status == 401


def test_with_a_key_the_routes_are_served(guarded):
    assert get(guarded, "/v1/models", BEARER).status == 200
    assert get(guarded, "/v1/models", {"Authorization": f"bearer {KEY}"}).status == 200
    assert post(guarded, CHAT, document(), BEARER).status == 200
    metrics = get(guarded, "/metrics", BEARER)
    assert metrics.status == 200 and b"lcpgateway_" in metrics.body


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_key(guarded, path):
    assert get(guarded, path).status == 200


def test_metrics_of_their_own_address_are_not_on_the_main_one(plain):
    assert get(plain.port, "/metrics").status == 404
    own = get(plain.metrics_port, "/metrics")
    assert own.status == 200 and own.headers["content-type"].startswith("text/plain")
    assert b"lcpgateway_build_info" in own.body
    assert get(plain.metrics_port, "/v1/models").status == 404
    assert post(plain.metrics_port, CHAT, document()).status == 404


def test_a_made_up_model_is_no_label(plain):
    post(plain.port, CHAT, document(model="made-up-by-a-client"))
    assert b"made-up-by-a-client" not in get(plain.metrics_port, "/metrics").body


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def cors(answer):
    return {k: v for k, v in answer.headers.items() if k.startswith("access-control-")}


def test_cors_is_off_unless_asked_for(plain):
    asked = get(plain.port, CHAT, {"Origin": ORIGIN, **PREFLIGHT}, method="OPTIONS")
    assert asked.status == 403 and not cors(asked)
    posted = post(plain.port, CHAT, document(), {"Origin": ORIGIN})
    assert posted.status == 403 and not cors(posted)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/models"])
def test_a_page_of_an_allowed_origin_may_ask_first(guarded, path):
    asked = get(guarded, path, {"Origin": ORIGIN, **PREFLIGHT}, method="OPTIONS")
    assert asked.status == 204
    allowed = cors(asked)
    assert allowed["access-control-allow-origin"] == ORIGIN
    assert "POST" in allowed["access-control-allow-methods"]
    assert "x-stainless-os" in allowed["access-control-allow-headers"]
    assert asked.headers["vary"] == "Origin"


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_of_an_allowed_origin_may_read_answers_and_errors(guarded, stream):
    headers = {"Origin": ORIGIN, **BEARER}
    answers = [
        post(guarded, CHAT, document(stream=stream), headers),
        post(guarded, CHAT, document(model="unheard-of", stream=stream), headers),
        post(guarded, CHAT, document(stream=stream), {"Origin": ORIGIN}),
    ]
    assert [answer.status for answer in answers] == [200, 404, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "X-Lcp-Payment" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://app.example.evil"])
def test_a_page_of_another_origin_may_not(guarded, origin):
    asked = get(guarded, CHAT, {"Origin": origin, **PREFLIGHT}, method="OPTIONS")
    assert asked.status != 204 and not cors(asked)
    assert not cors(post(guarded, CHAT, document(), {"Origin": origin, **BEARER}))


@pytest.mark.parametrize("stream", [False, True])
def test_past_the_limit_of_jobs_is_429_before_a_peer_is_asked(plain, stream):
    eventually(lambda: get(plain.port, "/readyz").json["jobs_in_flight"] == 0)
    hanging = json.dumps(document(model="fault/execute-hangs", stream=stream)).encode()
    accepted = len(plain.events("accept")) + LIMIT
    with wire(plain.port) as one, wire(plain.port) as two:
        for connection in (one, two):
            connection.send(request_bytes("POST", CHAT, hanging))
        eventually(lambda: len(plain.events("accept")) == accepted)
        quoted = len(plain.events("quote"))
        for path in (CHAT, RESPONSES):
            answer = post(plain.port, path, document(path))
            assert answer.status == 429
            assert answer.error["type"] == "rate_limit_error"
            assert answer.error["code"] == "rate_limit_exceeded"
            assert answer.headers["x-should-retry"] == "true"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.verdict == "none"
        assert len(plain.events("quote")) == quoted
        assert get(plain.port, "/v1/models").status == 200
        assert get(plain.port, "/readyz").json["jobs_in_flight"] == LIMIT
    eventually(lambda: post(plain.port, CHAT, document()).status == 200)
