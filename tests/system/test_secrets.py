"""Prompts, outputs and keys are in no log line, at debug level and in any failure."""

import json
import secrets
from unittest import mock

import pytest

from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.faults import FaultInjector
from lcp_gateway.node.faulty_daemon import FaultyDaemon, failed
from lcp_gateway.node.lcp.buying_events import Outcome
from lcp_gateway.node.lcp.messages import Status
from lcp_gateway.node.runtime.calls import CallFailed
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support.gateway import gateway
from tests.support.node_thread import threaded_node
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, send_raw, wire

PROMPT = "zanzibar-quokka-prompt"
KEY = "sk-xylophone-quagga-key"
WRONG_KEY = "sk-periwinkle-okapi-key"
OUTPUT = "This is the echo"
BEARER = {"Authorization": f"Bearer {KEY}"}
BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])
STREAMED_OR_NOT = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def node():
    with threaded_node(NodeConfig(listen="127.0.0.1:0", faults=True)) as running:
        yield running


def serving(node, **more):
    settings = {
        "LCP_GATEWAY_LCPD_GRPC_ADDR": node.address,
        "LCP_GATEWAY_API_KEYS": KEY,
        "LCP_GATEWAY_LOG_LEVEL": "debug",
        **more,
    }
    return gateway(embedded=False, env=settings)


@pytest.fixture(scope="module")
def served(node):
    with serving(node) as running:
        yield running


@pytest.fixture(scope="module")
def short_jobs(node):
    with serving(node, LCP_GATEWAY_TIMEOUT_EXECUTE_S="1") as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_said(served, short_jobs):
    """After each test, search everything that the processes have written so far."""
    yield
    for running in (served, short_jobs):
        last = f"after-{secrets.token_hex(4)}"
        get(running.port, "/healthz", {"x-request-id": last})
        running.wait_for_log(last)
        said = running.logs + "\n".join(running.output)
        for secret in (PROMPT, OUTPUT, KEY, WRONG_KEY):
            assert secret not in said
        assert "Traceback" not in said and "Unhandled" not in said


def ask(served, path, model, **more):
    return post(served.port, path, document(path, model, PROMPT, **more), BEARER)


@BOTH
@STREAMED_OR_NOT
def test_of_a_job_that_goes_well(served, path, stream):
    answer = ask(served, path, "echo-1", stream=stream, user=PROMPT, metadata={"key": KEY})
    assert answer.status == 200
    if not stream:
        assert PROMPT in answer.body.decode() and OUTPUT in answer.body.decode()


@BOTH
@STREAMED_OR_NOT
@pytest.mark.parametrize(
    "name",
    [
        "quote-refused",
        "quote-code-invalid_argument",
        "no-route",
        "fail-after-payment",
        "execute-hangs",
        "wrong-hash",
        "wrong-length",
        "result-failed",
        "no-result",
        "stream-cut",
        "stream-stalls",
        "stream-binary",
    ],
)
def test_of_a_job_that_fails(served, short_jobs, path, stream, name):
    ends_with_a_timeout = name in {"execute-hangs", "stream-stalls"}
    ask(short_jobs if ends_with_a_timeout else served, path, f"fault/{name}", stream=stream)


@BOTH
@STREAMED_OR_NOT
def test_of_a_provider_that_repeats_the_prompt_in_its_error(served, path, stream):
    def fail(self, name, honest):
        raise CallFailed(UpstreamStatus.UNAVAILABLE, f"cannot do this: {PROMPT}")

    with mock.patch.object(FaultInjector, "head", fail):
        answer = ask(served, path, "fault/empty-chunks", stream=stream)
    assert answer.status == 502 and answer.verdict == "unknown"


@BOTH
@STREAMED_OR_NOT
def test_of_a_provider_that_repeats_the_prompt_in_its_result(served, path, stream):
    def fail(self, name, end, *_):
        return failed(end, Outcome.FAILED, Status.FAILED, f"no: {PROMPT}")

    with mock.patch.object(FaultyDaemon, "_end", fail):
        answer = ask(served, path, "fault/empty-chunks", stream=stream)
    assert answer.status == (200 if stream else 502) and answer.verdict == "settled"


@BOTH
@pytest.mark.parametrize("model", ["fault/execute-hangs", "fault/stream-stalls"])
def test_of_a_client_that_goes_away(served, node, path, model):
    node.received.clear()
    body = json.dumps(document(path, model, PROMPT, stream=True)).encode()
    with wire(served.port) as connection:
        connection.send(request_bytes("POST", path, body, BEARER))
        if model == "fault/stream-stalls":
            connection.read_until(b"\n\n")


def malformed():
    """Requests that carry the markers to places where a careless log would repeat them."""
    bearer = {"Authorization": f"Bearer {KEY}"}
    wrong = {"Authorization": f"Bearer {WRONG_KEY}"}
    prompt = PROMPT.encode()
    yield request_bytes("POST", CHAT, json.dumps(document(text=PROMPT)).encode(), wrong)
    yield request_bytes("GET", f"/v1/{PROMPT}?api_key={WRONG_KEY}", headers=wrong)
    for body in (
        b'{"model":"echo-1","messages":"' + prompt + b'"}',
        b'{"model":"echo-1","messages":[{"content":"' + prompt,
        b'{"model":"echo-1","messages":[1],"stream":"' + prompt + b'"}',
        b'{"model":["' + prompt + b'"],"messages":[1]}',
        b'{"model":"echo-1","model":"echo-1","messages":["' + prompt + b'"]}',
        prompt + b"\xff\xfe",
        b'{"x":"' + prompt + b'","deep":' + b"[" * 60_000,
    ):
        yield request_bytes("POST", CHAT, body, bearer)
        yield request_bytes("POST", RESPONSES, body, bearer)
    yield f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{PROMPT} {WRONG_KEY}\r\n\r\n".encode()
    yield f"{PROMPT} {CHAT}\r\n\r\n".encode()
    yield f"POST {CHAT} HTTP/9.{PROMPT}\r\n\r\n".encode()
    yield request_bytes("POST", CHAT, None, {**bearer, "Content-Length": f"-{WRONG_KEY}"})
    yield request_bytes("POST", CHAT, None, {**bearer, "X-Long": PROMPT * 2_000})
    yield request_bytes("POST", CHAT, None, {**bearer, "Transfer-Encoding": "chunked"}) + (
        f"zz{PROMPT}\r\n{PROMPT}\r\n".encode()
    )


def test_of_invalid_requests(served):
    for raw in malformed():
        answer = send_raw(served.port, raw)
        assert 400 <= answer.status < 500, raw[:100]
        assert answer.error
        assert PROMPT not in answer.body.decode() and WRONG_KEY not in answer.body.decode()


def test_the_logs_are_there_at_all(served):
    ask(served, CHAT, "echo-1")
    served.wait_for_log('"event":"chat completion"')
