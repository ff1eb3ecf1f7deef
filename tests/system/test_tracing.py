"""The real program, and a collector that takes its traces: complete, in one trace, and without prompts or outputs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.gateway import RunningGateway, gateway
from tests.support.http_node import HttpNodeThread
from tests.support.node_thread import eventually
from tests.support.otlp_collector import CLIENT, INTERNAL, SERVER, Collector, Trace, collector
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire

pytestmark = pytest.mark.slow

PROMPT, OUTPUT, KEY, QUERY = "MARKERprompt", "MARKERoutput", "sk-MARKERkey", "MARKERquery"
NODE_KEY, OTLP_KEY = "sk-MARKERnode", "MARKERotlp"
AUTH = {"Authorization": f"Bearer {KEY}"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
WHOLE, STREAMED = ["quote", "route", "pay"], ["quote", "route", "pay", "stream"]
TOKEN_S = 0.05


@contextmanager
def traced(**more: str) -> Iterator[tuple[RunningGateway, Collector, HttpNodeThread]]:
    with collector() as seen, HttpNodeThread("home", ("home-1",), api_key=NODE_KEY) as node:
        nodes = [{"name": "home", "base_url": node.base_url, "api_key": NODE_KEY, "endpoints": ["chat", "responses"]}]
        settings = {
            "LCP_GATEWAY_OTLP_ENDPOINT": seen.endpoint,
            "LCP_GATEWAY_OTLP_HEADERS": f"x-otlp-key={OTLP_KEY}",
            "LCP_GATEWAY_API_KEYS": KEY,
            "LCP_GATEWAY_NODE_FAULTS": "true",
            "LCP_GATEWAY_NODES": json.dumps(nodes),
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            **more,
        }
        with gateway(env=settings) as served:
            yield served, seen, node


@pytest.fixture(scope="module")
def running():
    with traced() as parts:
        served, seen, _ = parts
        yield parts
        assert served.stop() == 0
        # Of everything that was exported in all of the tests.
        everything = b"".join(seen.raw)
        assert everything and b"MARKER" not in everything
        assert all(headers["x-otlp-key"] == OTLP_KEY for headers in seen.headers)
        assert OTLP_KEY not in served.logs and "MARKER" not in served.logs


@pytest.fixture
def served(running):
    return running[0]


@pytest.fixture
def seen(running):
    """The collector, without the spans of earlier tests."""
    time.sleep(0.2)
    running[1].spans.clear()
    return running[1]


@pytest.fixture
def node(running):
    running[2].behave(delay_s=0.0, token_delay_s=0.0, fail_status=0, fail_body="", cut="")
    return running[2]


def ask(served, path=CHAT, model="echo-1", *, stream=False, **headers):
    body = document(path, model, PROMPT, stream=stream)
    return post(served.port, f"{path}?key={QUERY}", body, headers={**AUTH, **headers})


def check_whole(trace: Trace, operation: str, model: str) -> None:
    root = trace.root
    assert trace.is_whole and root.name == f"{operation} {model}" and root.kind == SERVER
    assert root.attributes["gen_ai.operation.name"] == operation
    assert root.attributes["gen_ai.request.model"] == model
    # One span has the operation: a dashboard that counts operations counts each once.
    assert sum("gen_ai.operation.name" in span.attributes for span in trace.spans) == 1
    for span in trace.spans:
        assert span.start_ns <= span.end_ns and not span.events and not span.status_text
        if span.name in {"quote", "pay", "stream"}:
            assert span.kind == CLIENT
        if span.name == "route":
            assert span.kind == INTERNAL


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("model", ["echo-1", "home-1"])
def test_a_request_is_one_whole_trace(served, seen, node, path, stream, model):
    answer = ask(served, path, model, stream=stream)
    assert answer.status == 200 and PROMPT.encode() in answer.body
    name = f"chat {model}"
    trace = seen.wait_for([name, *(STREAMED if stream else WHOLE)])
    check_whole(trace, "chat", model)
    root, pay = trace.root.attributes, trace["pay"].attributes
    assert root["http.route"] == path and root["http.request.method"] == "POST"
    assert root["http.response.status_code"] == 200 and "error.type" not in root
    assert root["server.address"] == "127.0.0.1" and root["server.port"] == served.port
    assert root["lcp.request_id"] == answer.headers["x-request-id"]
    assert root["gen_ai.request.stream"] is stream
    for facts in (root, pay, trace["quote"].attributes):
        assert facts["lcp.job_id"] == answer.headers["x-lcp-job-id"]
        assert facts["lcp.peer_id"] == answer.headers["x-lcp-peer-id"]
        assert facts["lcp.terms_hash"] == answer.headers["x-lcp-terms-hash"]
        assert facts["gen_ai.provider.name"] == ("lcp" if model == "echo-1" else "node")
    assert (root["lcp.payment"], root["lcp.state"]) == (answer.verdict, "delivered")
    if stream:
        assert trace["stream"].start_ns >= trace["pay"].end_ns
        assert trace["stream"].attributes["lcp.state"] == "delivered"


def test_the_log_line_names_the_trace(served, seen):
    answer = ask(served)
    trace = seen.wait_for(["chat echo-1", *WHOLE])
    eventually(lambda: answer.headers["x-request-id"] in served.logs)
    (line,) = [line for line in served.json_logs() if line.get("request_id") == answer.headers["x-request-id"]]
    assert line["trace_id"] == trace.root.trace_id


def test_a_callers_trace_goes_through_to_the_node(served, seen, node):
    node.requests.clear()
    ask(served, model="home-1", traceparent=PARENT, tracestate="vendor=1")
    trace = seen.wait_for(["chat home-1", *WHOLE])
    assert trace.root.trace_id == TRACE and trace.root.parent == PARENT.split("-")[2]
    assert {span.trace_state for span in trace.spans} == {"vendor=1"}
    headers = {name.lower(): value for name, value in node.calls()[-1].headers.items()}
    assert headers["traceparent"].split("-")[1:3] == [TRACE, trace["pay"].span_id]
    assert headers["tracestate"] == "vendor=1"
    sent = document(CHAT, "home-1", PROMPT, stream=False)
    assert node.calls()[-1].body == json.dumps(sent).encode()


def test_a_caller_that_is_not_traced_is_not_traced_here_either(served, seen, node):
    node.requests.clear()
    ask(served, model="home-1", traceparent=f"{PARENT[:-2]}00")
    ask(served)
    trace = seen.wait_for(["chat echo-1", *WHOLE])
    assert trace.root.trace_id != TRACE and TRACE not in seen.traces()
    headers = {name.lower(): value for name, value in node.calls()[-1].headers.items()}
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    "raw",
    [b"", b"nonsense", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"\xff" * 55, b"0" * 4000],
    ids=["empty", "nonsense", "zeros", "bytes", "long"],
)
def test_an_invalid_traceparent_is_ignored(served, seen, raw):
    body = json.dumps(document(CHAT, "echo-1", PROMPT)).encode()
    sent = request_bytes("POST", CHAT, body, AUTH).replace(
        b"\r\n\r\n", b"\r\ntraceparent: " + raw + b"\r\ntracestate: \xfe=;;\r\n\r\n", 1
    )
    with wire(served.port) as connection:
        connection.send(sent)
        assert connection.answer().status == 200
    trace = seen.wait_for(["chat echo-1", *WHOLE])
    assert trace.root.parent == "" and trace.root.trace_state == ""


def test_a_joined_request_points_to_the_trace_that_bought(served, seen):
    key = {"Idempotency-Key": f"traced {time.monotonic()}"}
    first, second = ask(served, **key), ask(served, **key)
    assert first.headers["x-lcp-job-id"] == second.headers["x-lcp-job-id"]
    bought = seen.wait_for(["chat echo-1", *WHOLE])
    joined = seen.wait_for(["chat echo-1"])
    assert joined.root.links == ((bought.root.trace_id, bought.root.span_id),)
    assert joined.root.attributes["lcp.joined"] is True
    assert bought.root.attributes["lcp.joined"] is False and bought.root.links == ()


@pytest.mark.parametrize(
    ("model", "stream", "spans", "payment", "word"),
    [
        ("fault/no-route", False, WHOLE, "none", "FAILED_PRECONDITION"),
        ("fault/wrong-hash", False, WHOLE, "settled", "undelivered"),
        ("fault/stream-cut", True, STREAMED, "settled", "undelivered"),
    ],
)
def test_a_failure_is_a_complete_trace_with_its_payment(served, seen, model, stream, spans, payment, word):
    check_failure(served, seen, model, stream, spans, payment, word)


def test_an_execution_past_its_time_is_a_complete_trace_with_its_payment():
    with traced(LCP_GATEWAY_TIMEOUT_EXECUTE_S="2") as (served, seen, _):
        check_failure(served, seen, "fault/execute-hangs", False, WHOLE, "unknown", "DEADLINE_EXCEEDED")
        assert b"MARKER" not in b"".join(seen.raw)


def check_failure(served, seen, model, stream, spans, payment, word):
    ask(served, model=model, stream=stream)
    trace = seen.wait_for([f"chat {model}", *spans])
    check_whole(trace, "chat", model)
    failed = trace[spans[-1]]
    assert failed.is_error and failed.attributes["error.type"] == word
    assert trace.root.attributes["lcp.payment"] == failed.attributes["lcp.payment"] == payment
    assert trace.root.attributes["error.type"]


def test_a_nodes_error_text_is_not_in_the_trace(served, seen, node):
    error = {"message": f"{OUTPUT} {PROMPT}", "code": "its_own_word", "type": "x", "param": None}
    node.behave(fail_status=400, fail_body=json.dumps({"error": error}))
    assert ask(served, model="home-1").error["code"] == "its_own_word"
    trace = seen.wait_for(["chat home-1", *WHOLE])
    assert trace.root.attributes["error.type"] == trace["pay"].attributes["error.type"] == "INVALID_ARGUMENT"
    assert not trace.root.is_error and trace["pay"].is_error
    assert b"its_own_word" not in b"".join(seen.raw)


def test_what_is_refused_before_anything_is_bought_is_short(served, seen):
    assert ask(served, model="unsold-model").status == 404
    trace = seen.wait_for(["chat unsold-model", "route"])
    assert trace.root.attributes["error.type"] == "model_not_available"
    assert not trace.root.is_error and trace.root.attributes["lcp.payment"] == "none"
    assert post(served.port, CHAT, document(CHAT, "echo-1", PROMPT)).status == 401
    refused = seen.wait_for([f"POST {CHAT}"])
    assert refused.root.attributes["error.type"] == "invalid_api_key"


def test_an_agents_token_and_an_unknown_path_are_not_in_the_trace(served, seen):
    # Valid or not: only a gateway with accounts accepts such tokens.
    path = f"/api/agent/{KEY}{CHAT}"
    assert post(served.port, path, document(CHAT, "echo-1", PROMPT)).status == 401
    route = f"/api/agent/{{agent_token}}{CHAT}"
    assert seen.wait_for([f"POST {route}"]).root.attributes["http.route"] == route
    assert get(served.port, f"/v1/{KEY}", headers=AUTH).status == 404
    assert "http.route" not in seen.wait_for(["GET"]).root.attributes


def test_probes_and_scrapes_are_not_traced(served, seen):
    for path in ("/healthz", "/readyz", "/metrics"):
        get(served.port, path, headers=AUTH)
    assert get(served.port, "/v1/models", headers=AUTH).status == 200
    seen.wait_for(["GET /v1/models"])
    assert len(seen.traces()) == 1


def test_a_client_that_leaves_a_stream_still_gives_a_whole_trace(served, seen, node):
    node.behave(token_delay_s=TOKEN_S)
    body = json.dumps(document(CHAT, "home-1", " ".join([PROMPT] * 400), stream=True)).encode()
    with wire(served.port) as connection:
        connection.send(request_bytes("POST", CHAT, body, AUTH))
        connection.read_until(b"data:")
    trace = seen.wait_for(["chat home-1", *STREAMED])
    assert trace.is_whole
    assert trace.root.attributes["error.type"] == "cancelled" and not trace.root.is_error
    # The purchase goes on after its request for the time that a paid answer is awaited.
    assert trace["stream"].end_ns > trace.root.end_ns
    assert trace["stream"].attributes["error.type"] == "cancelled"


def test_a_response_in_the_background_is_bought_within_the_trace_of_its_order(served, seen, node):
    node.behave(delay_s=0.3)
    body = {**document(RESPONSES, "home-1", PROMPT), "background": True}
    assert post(served.port, RESPONSES, body, headers=AUTH).json["status"] == "queued"
    trace = seen.wait_for(["chat home-1", *WHOLE])
    assert trace.is_whole and trace["pay"].end_ns > trace.root.end_ns


def test_a_scrape_for_openmetrics_names_traces(served, seen):
    ask(served)
    trace = seen.wait_for(["chat echo-1", *WHOLE])
    wanted = {**AUTH, "Accept": "application/openmetrics-text; version=1.0.0"}
    shown = get(served.port, "/metrics", headers=wanted).body.decode()
    named = [line for line in shown.splitlines() if trace.root.trace_id in line]
    families = {line.partition("_bucket{")[0].removeprefix("lcpgateway_") for line in named}
    latencies = ("request", "quote", "execute", "first_byte")
    assert families == {f"{name}_duration_seconds" for name in latencies}
    assert "trace_id" not in get(served.port, "/metrics", headers=AUTH).body.decode()


@pytest.mark.parametrize("trouble", ["away", "refuses", "slow"])
def test_a_failing_collector_does_not_affect_clients(trouble):
    with collector() as seen:
        if trouble == "refuses":
            seen.status = 503
        elif trouble == "slow":
            seen.held.clear()
        if trouble == "away":
            with collector() as gone:
                pass
        target = gone.endpoint if trouble == "away" else seen.endpoint
        settings = {"LCP_GATEWAY_OTLP_ENDPOINT": target, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        with gateway(env=settings) as served:
            # A collector that is slow answers nothing before all of this is over.
            for _ in range(60):
                assert post(served.port, CHAT, document(CHAT, "echo-1", PROMPT)).status == 200
            assert served.stop() == 0
            assert seen.raw == []
            seen.held.set()
            lines = [line for line in served.json_logs() if line["logger"] == "tracing"]
            assert len(lines) <= 1
            assert "Traceback" not in served.logs and "opentelemetry" not in served.logs


def test_without_a_collector_nothing_is_traced_nor_passed_on():
    with traced(LCP_GATEWAY_OTLP_ENDPOINT="") as (served, seen, node):
        ask(served, model="home-1", traceparent=PARENT)
        headers = {name.lower() for name in node.calls()[-1].headers}
        assert not headers & {"traceparent", "tracestate"}
        assert served.stop() == 0
        assert seen.raw == [] and "trace_id" not in served.logs


def test_only_a_share_is_traced_where_that_is_wanted():
    with traced(LCP_GATEWAY_TRACE_RATIO="0") as (served, seen, _):
        assert ask(served).status == 200
        ask(served, traceparent=PARENT)
        trace = seen.wait_for(["chat echo-1", *WHOLE])
        assert trace.root.trace_id == TRACE
        assert served.stop() == 0
        assert set(seen.traces()) == {TRACE}
