"""The behaviour that clients of openai-serve rely on, against the process with OPENAI_SERVE_* set, over daemons of both versions."""

import hashlib
import json

import pytest

from lcp_gateway.node.config import FaultConfig, NodeConfig
from tests.support.gateway import gateway
from tests.support.node_thread import eventually, threaded_node
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire

BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])
STATUS_OF_CODE = {
    "cancelled": 408,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 400,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 502,
    "data_loss": 500,
    "unauthenticated": 401,
}


@pytest.fixture(scope="module", params=[2, 3], ids=["version 2", "version 3"])
def node(request):
    """A daemon of each version; ``received`` holds what came in the messages of version 2."""
    faults = FaultConfig(slow_chunk_s=0.3)
    config = NodeConfig(listen="127.0.0.1:0", faults=True, fault_settings=faults, protocol_version=request.param)
    with threaded_node(config) as running:
        yield running


@pytest.fixture(scope="module")
def served(node):
    settings = {"OPENAI_SERVE_HTTP_ADDR": "127.0.0.1:0", "OPENAI_SERVE_LCPD_GRPC_ADDR": node.address}
    if node.node.config.protocol_version == 3:
        # Its peers list no models.
        lists = (f"{peer.id}={','.join(peer.models)}" for peer in node.node.peers)
        settings["LCP_GATEWAY_PEER_MODELS"] = ";".join(lists)
    with gateway(embedded=False, env=settings) as running:
        yield running


@pytest.fixture
def port(served, node):
    node.received.clear()
    return served.port


@BOTH
def test_both_routes_answer_with_the_models_text(port, path):
    answer = post(port, path, document(path))
    assert answer.status == 200 and answer.whole
    assert answer.json["object"] == ("chat.completion" if path == CHAT else "response")


def test_models_are_listed_once_in_openais_shape(port, node):
    answer = get(port, "/v1/models")
    assert answer.status == 200
    listed = answer.json
    assert listed["object"] == "list"
    ids = [model["id"] for model in listed["data"]]
    assert ids.count("echo-1") == 1 and {"echo-mini", "echo-slow"} <= set(ids)
    assert {model["object"] for model in listed["data"]} == {"model"}


def test_healthz_is_open(port):
    assert get(port, "/healthz").status == 200


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_the_requests_bytes_go_through_unchanged(port, node, path, stream):
    body = json.dumps(
        document(path, text="caf\u00e9", stream=stream, an_unknown_field={"b": 1, "a": [None]}), indent=3
    ).encode()
    answer = post(port, path, b"  " + body + b"\n")
    assert answer.status == 200
    assert node.last_body() == b"  " + body + b"\n"
    task = node.last_quote().task
    assert getattr(task, task.WhichOneof("spec")).params.model == "echo-1"


@BOTH
def test_the_results_bytes_come_back_unchanged(port, node, path):
    answer = post(port, path, document(path))
    result = node.received.last_answer("AcceptAndExecute").result
    assert answer.body == result.result
    assert hashlib.sha256(answer.body).digest() == result.result_hash
    assert answer.headers["content-type"] == result.content_type
    assert int(answer.headers["content-length"]) == result.result_len


@BOTH
def test_a_streams_bytes_come_back_unchanged(port, node, path):
    answer = post(port, path, document(path, stream=True))
    assert answer.status == 200 and answer.whole
    assert answer.body == bytes(node.received.streams[-1])


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_headers_name_the_peer_the_job_the_price_and_the_terms(port, node, path, stream):
    headers = post(port, path, document(path, stream=stream)).headers
    terms = node.received.last_answer("RequestQuote").terms
    assert headers["x-lcp-peer-id"] == node.peer_id("Alice")
    assert headers["x-lcp-job-id"] == terms.job_id.hex()
    assert headers["x-lcp-price-msat"] == str(terms.price_msat)
    assert headers["x-lcp-terms-hash"] == terms.terms_hash.hex()


@BOTH
def test_stream_headers_keep_proxies_from_holding_it_back(port, path):
    headers = post(port, path, document(path, stream=True)).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


def test_each_chunk_is_flushed_as_it_comes(port):
    with wire(port) as connection:
        # So long that its end is never waited for.
        body = json.dumps(document(model="fault/stream-slow", text="word " * 200, stream=True)).encode()
        connection.send(request_bytes("POST", CHAT, body))
        first = connection.read_until(b"\r\n\r\n") + connection.read_until(b"\n\n")
        assert b'"role":"assistant"' in first
        assert b"[DONE]" not in connection._held


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, identity"])
def test_a_compressed_request_is_415(port, encoding):
    answer = post(port, CHAT, document(), {"Content-Encoding": encoding})
    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")


def test_the_identity_encoding_is_no_encoding(port):
    assert post(port, CHAT, document(), {"Content-Encoding": "identity"}).status == 200


def test_a_body_past_one_mebibyte_is_413(port, node):
    answer = post(port, CHAT, document(text="x" * (1 << 20)))
    assert answer.status == 413 and answer.error
    assert not node.received.of("RequestQuote")


BAD_BODIES = {
    "no JSON": b"model=echo-1",
    "an array": b'[{"model":"echo-1"}]',
    "a string": b'"echo-1"',
    "nothing": b"",
    "no model": b'{"messages":[{"role":"user","content":"x"}],"input":"x"}',
    "an empty model": b'{"model":"","messages":[{}],"input":"x"}',
    "a blank model": b'{"model":" ","messages":[{}],"input":"x"}',
    "a padded model": b'{"model":" echo-1","messages":[{}],"input":"x"}',
    "a model padded behind": b'{"model":"echo-1\\n","messages":[{}],"input":"x"}',
    "nothing to answer": b'{"model":"echo-1"}',
    "nothing in messages or input": b'{"model":"echo-1","messages":[],"input":""}',
}


@BOTH
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_an_invalid_body_is_400_before_a_peer_is_asked(port, node, path, body):
    answer = post(port, path, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert not node.received.of("RequestQuote")


@pytest.mark.parametrize("code", STATUS_OF_CODE)
def test_each_grpc_status_of_a_quote_has_its_http_status(port, node, code):
    answer = post(port, CHAT, document(model=f"fault/quote-code-{code}"))
    assert answer.status == STATUS_OF_CODE[code] and answer.error
    assert not node.received.of("AcceptAndExecute")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", STATUS_OF_CODE)
def test_each_grpc_status_of_an_execution_has_its_http_status(port, node, code, stream):
    answer = post(port, CHAT, document(model=f"fault/execute-code-{code}", stream=stream))
    assert answer.status == STATUS_OF_CODE[code] and answer.error
    executed = "AcceptAndExecuteStream" if stream else "AcceptAndExecute"
    assert len(node.received.of(executed)) == 1


@BOTH
@pytest.mark.parametrize("name", ["result-failed", "result-cancelled"])
def test_a_result_that_is_not_ok_is_502(port, path, name):
    assert post(port, path, document(path, f"fault/{name}")).status == 502


@pytest.mark.parametrize(
    ("model", "stream"),
    [
        ("fault/execute-hangs", False),
        ("fault/execute-hangs", True),
        ("fault/stream-stalls", True),
        ("fault/stream-floods", True),
    ],
)
def test_a_client_that_goes_away_has_its_job_cancelled(port, node, model, stream):
    with wire(port) as connection:
        body = json.dumps(document(model=model, stream=stream)).encode()
        connection.send(request_bytes("POST", CHAT, body))
        executed = "AcceptAndExecuteStream" if stream else "AcceptAndExecute"
        eventually(lambda: node.received.of(executed))
        job_id = node.received.of(executed)[0].job_id

        def cancelled():
            # A job of the test before may be cancelled only now.
            return [cancel for cancel in node.received.of("CancelJob") if cancel.job_id == job_id]

        if model != "fault/execute-hangs":
            connection.read_until(b"\n\n")
        assert not cancelled()
    eventually(cancelled)
    (cancel,) = cancelled()
    assert cancel.reason == "request canceled"
    assert cancel.peer_id == node.peer_id("Mallory")


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_job_leaves_one_log_line_with_openai_serves_fields(served, node, path, stream):
    name = f"log-{path[-4:]}-{stream}"
    answer = post(served.port, path, document(path, text="a-word-to-find", stream=stream), {"x-request-id": name})
    served.wait_for_log(name)
    (line,) = [entry for entry in served.json_logs() if entry.get("request_id") == name]
    terms = node.received.last_answer("RequestQuote").terms
    assert line["model"] == "echo-1"
    assert line["peer_id"] == node.peer_id("Alice")
    assert line["job_id"] == terms.job_id.hex()
    assert line["price_msat"] == terms.price_msat
    assert line["terms_hash"] == terms.terms_hash.hex()
    assert line["request_bytes"] == len(node.last_body())
    assert line["request_tokens_approx"] == len(node.last_body()) // 4
    what = "streamed" if stream else "completion"
    assert line[f"{what}_bytes"] == len(answer.body)
    assert line[f"{what}_tokens_approx"] == len(answer.body) // 4
    assert line["total_ms"] >= line["quote_ms"] >= 0 and line["execute_ms"] >= 0
    assert "a-word-to-find" not in served.logs
