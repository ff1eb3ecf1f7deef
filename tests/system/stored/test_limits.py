"""The limits of stored objects and of chains: each is an error before anything is paid."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread
from tests.support.money import accepts, metric
from tests.support.node_thread import eventually
from tests.support.stored import MODEL, begun, cancel, chat, delete, ended, input_items, on_http_node, respond, retrieve
from tests.support.wire import CHAT, RESPONSES, document, get, post

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def node():
    with HttpNodeThread("one", (MODEL,)) as running:
        yield running


@pytest.fixture(autouse=True)
def as_usual(node):
    node.behave(raw=None, content_type="", content_encoding="", delay_s=0.0)
    node.requests.clear()


# Where nothing is stored.


@pytest.fixture(scope="module")
def storeless():
    with gateway(env={"LCP_GATEWAY_MAX_STORED_ITEMS": "0"}) as running:
        yield running


@BOTH
def test_without_a_store_plain_requests_work(storeless, stream):
    for more in ({}, {"store": True}, {"store": False}):
        answer = respond(storeless.port, stream=stream, **more)
        assert answer.status == 200
        assert chat(storeless.port, stream=stream, **more).status == 200
    assert metric(storeless, "stored_items") == 0


@pytest.mark.parametrize("option", [{"previous_response_id": "resp_any"}, {"background": True}])
def test_without_a_store_requests_that_need_one_are_refused(storeless, option):
    before = len(accepts(storeless))
    answer = respond(storeless.port, **option)
    assert (answer.status, answer.verdict) == (404, "none")
    assert answer.error["code"] == "storing_is_off"
    assert answer.error["param"] in option
    assert "max_stored_items" in answer.error["message"]
    assert len(accepts(storeless)) == before


def test_without_a_store_every_retrieval_is_404_with_the_reason(storeless):
    made = respond(storeless.port).json["id"]
    stored = chat(storeless.port).json["id"]
    for answer in (
        retrieve(storeless.port, made),
        retrieve(storeless.port, made, "?stream=true"),
        delete(storeless.port, f"{RESPONSES}/{made}"),
        cancel(storeless.port, made),
        get(storeless.port, f"{RESPONSES}/{made}/input_items"),
        get(storeless.port, f"{CHAT}/{stored}"),
        get(storeless.port, f"{CHAT}/{stored}/messages"),
        post(storeless.port, f"{CHAT}/{stored}", {"metadata": {}}),
        delete(storeless.port, f"{CHAT}/{stored}"),
    ):
        assert answer.status == 404
        assert "max_stored_items is 0" in answer.error["message"]
    assert get(storeless.port, CHAT).json["data"] == []


# How much is stored, and for how long.


def test_the_oldest_goes_first_and_not_what_builds_on_it(node):
    with on_http_node(node, max_stored_items=3) as running:
        port = running.port
        made = [respond(port, f"n{n}", model=MODEL).json["id"] for n in range(4)]
        assert [retrieve(port, one).status for one in made] == [404, 200, 200, 200]
        # The turns of a chain go on with the newest of them, though the store holds three responses.
        previous = made[-1]
        for number in range(6):
            turn = respond(port, f"t{number}", model=MODEL, previous_response_id=previous)
            previous = turn.json["id"]
        assert len(input_items(port, previous, "?limit=100")) == 13
        assert metric(running, "stored_items") == 3


def test_what_is_too_old_is_gone(node):
    with on_http_node(node, stored_for_s=5) as running:
        made = respond(running.port, model=MODEL).json["id"]
        assert retrieve(running.port, made).status == 200
        eventually(lambda: retrieve(running.port, made).status == 404)
        gone = respond(running.port, model=MODEL, previous_response_id=made)
        assert gone.error["code"] == "previous_response_not_found"


def test_what_is_larger_than_the_budget_is_answered_and_not_stored(node):
    with on_http_node(node, max_stored_bytes=20_000) as running:
        node.behave(raw=json.dumps({"id": "resp_big", "output": [], "pad": "x" * 30_000}).encode())
        assert respond(running.port, model=MODEL).status == 200
        assert retrieve(running.port, "resp_big").status == 404
        assert metric(running, "not_stored_total") == 1
        # In the background the client waits for it, and is told.
        response_id = begun(running.port, model=MODEL)
        found = ended(running.port, response_id)
        assert found.json["status"] == "failed"
        assert found.json["error"]["code"] == "answer_not_stored"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_what_is_compressed_is_answered_and_not_stored(node, encoding):
    """The gateway cannot read it, so it only passes it on."""
    with on_http_node(node) as running:
        node.behave(raw=b"no matter what", content_encoding=encoding)
        answer = respond(running.port, model=MODEL, store=True)
        assert answer.status in {200, 502}
        if answer.status == 200:
            assert answer.body == b"no matter what"
        assert metric(running, "stored_items") == 0


# How long a chain may become.


def test_a_chain_longer_than_a_body_may_be_is_refused_before_it_is_paid(node):
    with on_http_node(node, max_body_bytes=20_000) as running:
        first = respond(running.port, "x" * 9_000, model=MODEL).json["id"]
        node.requests.clear()
        answer = respond(running.port, "y" * 9_000, model=MODEL, previous_response_id=first)
        assert (answer.status, answer.verdict) == (400, "none")
        assert answer.error["code"] == "context_length_exceeded"
        assert answer.headers["x-should-retry"] == "false"
        assert not node.calls()
        background = respond(running.port, "y" * 9_000, model=MODEL, previous_response_id=first, background=True)
        assert background.error["code"] == "context_length_exceeded"
        shorter = respond(running.port, "y", model=MODEL, previous_response_id=first)
        assert shorter.status == 200


def test_a_chain_longer_than_the_models_context_is_refused_before_it_is_paid(node):
    models = {MODEL: {"context_length": 1_000}}
    with on_http_node(node, models=models) as running:
        # The context limit holds for requests without a chain too.
        alone = respond(running.port, "word " * 4_000, model=MODEL)
        assert (alone.status, alone.error["code"]) == (400, "context_length_exceeded")
        first = respond(running.port, "word " * 800, model=MODEL)
        assert first.status == 200
        node.requests.clear()
        answer = respond(running.port, "word " * 3_200, model=MODEL, previous_response_id=first.json["id"])
        assert (answer.status, answer.verdict) == (400, "none")
        assert answer.error["code"] == "context_length_exceeded"
        assert answer.error["param"] == "input"
        assert not node.calls()
        # A request that may still fit is not refused because of an estimate.
        near = respond(running.port, "word " * 400, model=MODEL).json["id"]
        assert respond(running.port, "more", model=MODEL, previous_response_id=near).status == 200


# Invalid requests.


@pytest.fixture(scope="module")
def plain(node):
    with on_http_node(node) as running:
        yield running


@pytest.mark.parametrize(
    ("option", "param"),
    [
        ({"store": "yes"}, "store"),
        ({"background": 1}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"previous_response_id": "x" * 1_000}, "previous_response_id"),
        ({"previous_response_id": "resp_x", "conversation": "conv_x"}, "previous_response_id"),
    ],
)
def test_an_invalid_request_is_refused(node, plain, option, param):
    answer = respond(plain.port, model=MODEL, **option)
    assert (answer.status, answer.verdict) == (400, "none")
    assert answer.error["param"] == param
    assert not node.calls()


@pytest.mark.parametrize(
    "metadata", [[], "x", {"a": 1}, {"a": None}, {"k" * 65: "v"}, {"k": "v" * 513}, {f"k{n}": "" for n in range(17)}]
)
def test_metadata_is_what_openai_takes(plain, metadata):
    made = chat(plain.port, model=MODEL, metadata={"a": "b"}).json["id"]
    for answer in (
        chat(plain.port, model=MODEL, metadata=metadata),
        post(plain.port, f"{CHAT}/{made}", {"metadata": metadata}),
    ):
        assert answer.status == 400 and answer.error["param"] == "metadata"
    assert get(plain.port, f"{CHAT}/{made}").json["metadata"] == {"a": "b"}
    # Without storing the parameter is passed to the provider.
    assert chat(plain.port, model=MODEL, metadata=metadata, store=False).status == 200


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=-1", "order=up", "after=item_missing", "limit=1e2"]
)
def test_an_invalid_page_is_refused(plain, query):
    made = respond(plain.port, model=MODEL).json["id"]
    stored = chat(plain.port, model=MODEL).json["id"]
    for path in (f"{RESPONSES}/{made}/input_items", CHAT, f"{CHAT}/{stored}/messages"):
        answer = get(plain.port, f"{path}?{query}")
        assert answer.status == 400 and answer.error["param"] in query


@pytest.mark.parametrize("query", ["?stream=maybe", "?starting_after=1", "?stream=true&starting_after=x"])
def test_an_invalid_replay_is_refused(plain, query):
    made = respond(plain.port, model=MODEL).json["id"]
    assert retrieve(plain.port, made, query).status == 400


@pytest.mark.parametrize("path", ["/v1/responses/", "/v1/responses/a/b", "/v1/responses/%2e%2e", "/v1/responses/a%2Fb"])
def test_an_invalid_id_is_not_found(plain, path):
    assert get(plain.port, path).status == 404
    assert delete(plain.port, path).status in {404, 405}


def test_cors_allows_every_method_of_the_routes(node):
    with on_http_node(node, cors_origins="https://page.invalid") as running:
        made = respond(running.port, model=MODEL).json["id"]
        origin = {"Origin": "https://page.invalid"}
        found = retrieve(running.port, made, headers=origin)
        assert found.headers["access-control-allow-origin"] == "https://page.invalid"
        asked = {**origin, "Access-Control-Request-Method": "DELETE"}
        allowed = get(running.port, f"{RESPONSES}/{made}", asked, method="OPTIONS")
        assert "DELETE" in allowed.headers["access-control-allow-methods"]


# Other settings of a request's life.


@BOTH
def test_a_request_without_a_model_gets_the_default_one(node, stream):
    with on_http_node(node, default_model=MODEL) as running:
        for path in (RESPONSES, CHAT):
            body = document(path, stream=stream)
            del body["model"]
            answer = post(running.port, path, body)
            assert answer.status == 200, answer.body
        assert [json.loads(call.body)["model"] for call in node.calls()] == [MODEL, MODEL]
        body = {"input": "hello", "background": True}
        made = post(running.port, RESPONSES, body)
        assert ended(running.port, made.json["id"]).json["status"] == "completed"


def test_a_request_without_a_model_is_refused_where_there_is_no_default(plain):
    answer = post(plain.port, RESPONSES, {"input": "hello", "background": True})
    assert (answer.status, answer.error["param"]) == (400, "model")


def test_a_purchase_that_takes_too_long_is_ended_and_says_what_was_paid(tmp_path):
    peers = tmp_path / "peers.toml"
    peers.write_text(
        '[[peers]]\nalias = "A"\nquote_latency_s = 60.0\n[[peers.models]]\nname = "slow-quote"\n'
        '[[peers]]\nalias = "B"\n[[peers.models]]\nname = "echo-slow"\ntokens_per_second = 5.0\n'
    )
    env = {"LCP_GATEWAY_NODE_PEERS_FILE": str(peers), "LCP_GATEWAY_TIMEOUT_S": "15"}
    words = "word " * 200
    with gateway(env=env) as running, ThreadPoolExecutor(3) as clients:
        jobs = {model: begun(running.port, words, model=model) for model in ("slow-quote", "echo-slow")}
        waiting = [
            clients.submit(respond, running.port, words, model=model, stream=stream)
            for model, stream in (("slow-quote", False), ("echo-slow", False), ("echo-slow", True))
        ]
        answer, late, cut = (one.result() for one in waiting)
        assert (answer.status, answer.verdict) == (504, "none")
        assert answer.error["code"] == "timed_out"
        assert (late.status, late.error["code"]) == (504, "timed_out")
        assert late.verdict in {"settled", "unknown"}
        assert late.headers["x-should-retry"] == "false"
        assert not cut.whole and cut.blocks[-1][0] == "error"
        for model, payments in (("slow-quote", {"none"}), ("echo-slow", {"settled", "unknown"})):
            found = ended(running.port, jobs[model])
            assert found.json["status"] == "failed"
            assert found.json["error"]["code"] == "timed_out"
            assert found.json["lcp"]["payment"] in payments
