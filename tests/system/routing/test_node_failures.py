"""Every way in which a node can fail: the client's error, the payment, the provider that is asked next, and no task sent twice."""

import json
from dataclasses import dataclass, field

import openai
import pytest

from tests.support.http_node import HttpNodeThread, http_nodes
from tests.support.journaled import query
from tests.support.wire import CHAT, RESPONSES
from tests.system.routing.providers import ask, nodes_of, row, served_by, until

PRICE_MSAT = 700
SPARE_MSAT = 500_000
# Long enough to connect and to get the beginning of a stream on a busy machine.
SOON_S = 2
PROMPT = "zanzibar-quokka-prompt and some more words"
OWN_MODEL = {"free": "of-free", "dear": "of-dear"}
SHARED_MODEL = {"free": "free-or-spare", "dear": "dear-or-spare"}
HUGE = b'{"a":"' + b"x" * (33 * 1024 * 1024) + b'"}'
STREAMED_OR_NOT = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
FREE_OR_NOT = pytest.mark.parametrize("which", ["free", "dear"])


def error_body(message, code):
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})


@dataclass(frozen=True)
class Failure:
    """``lost``: the node had the task and did not refuse it; ``elsewhere``: another provider may serve it."""

    behaviour: dict
    status: int
    code: str
    lost: bool = False
    elsewhere: bool = True
    tell_retry: bool = True
    message: str = field(default="", kw_only=True)


REFUSALS = {
    "401": Failure({"fail_status": 401}, 502, "upstream_unavailable"),
    "402": Failure({"fail_status": 402}, 502, "upstream_unavailable"),
    "403": Failure({"fail_status": 403}, 502, "upstream_unavailable"),
    "400": Failure(
        {"fail_status": 400, "fail_body": error_body("too warm", "bad_temperature")},
        400,
        "bad_temperature",
        elsewhere=False,
        tell_retry=False,
        message="too warm",
    ),
    "404": Failure({"fail_status": 404}, 400, "node_failed", tell_retry=False),
    "422": Failure({"fail_status": 422}, 400, "node_failed", elsewhere=False, tell_retry=False),
    "429": Failure({"fail_status": 429}, 429, "rate_limit_exceeded"),
    "500": Failure({"fail_status": 500}, 502, "upstream_unavailable"),
    "503": Failure(
        {"fail_status": 503, "fail_body": error_body("loading", "loading")}, 502, "loading", message="loading"
    ),
    "504": Failure({"fail_status": 504}, 504, "upstream_timeout", elsewhere=False),
    "redirect": Failure({"redirect": "http://127.0.0.1:1/v1/x"}, 502, "upstream_unavailable"),
    "cut before its head": Failure({"cut": "before_head"}, 502, "upstream_unavailable", lost=True),
}
# Of whole answers these are errors; of streams the beginning has gone out before.
LATE = {
    "cut in the middle": Failure({"cut": "mid_stream"}, 502, "upstream_unavailable", lost=True),
    "reset": Failure({"die_after_chunks": 1}, 502, "upstream_unavailable", lost=True),
    "cut without a length": Failure({"cut": "mid_stream", "close_delimited": True}, 500, "node_failed", lost=True),
    "huge": Failure({"raw": HUGE}, 500, "node_failed", lost=True),
}
LATE_STREAMS = {
    **{name: failure.behaviour for name, failure in LATE.items()},
    "without its end mark and length": {"cut": "no_done", "close_delimited": True},
}


@pytest.fixture(scope="module")
def nodes():
    made = {
        **{
            which: HttpNodeThread(name=which, models=(OWN_MODEL[which], SHARED_MODEL[which], f"soon-{which}"))
            for which in OWN_MODEL
        },
        "spare": HttpNodeThread(name="spare", models=(*SHARED_MODEL.values(), "soon-free", "soon-dear")),
    }
    with http_nodes(*made.values()):
        yield made


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.db"


@pytest.fixture(scope="module")
def served(nodes, journal):
    endpoints = ["chat", "responses"]
    models = {which: [OWN_MODEL[which], SHARED_MODEL[which]] for which in OWN_MODEL}
    rows = [
        row(nodes["free"], endpoints=endpoints, models=models["free"]),
        row(nodes["dear"], endpoints=endpoints, models=models["dear"], price_per_request_msat=PRICE_MSAT),
        row(nodes["spare"], endpoints=endpoints, price_per_request_msat=SPARE_MSAT),
    ]
    # The same two once more, with a short time-out; the spare one has these models too.
    for which, more in {"free": {}, "dear": {"price_per_request_msat": PRICE_MSAT}}.items():
        rows.append(
            row(nodes[which], endpoints=endpoints, timeout_s=SOON_S, models=[f"soon-{which}"], **more)
            | {"name": f"soon-{which}"}
        )
    settings = {
        "journal_url": str(journal),
        # The cheapest is asked first, whatever its measurements, and the spare one last.
        **{f"routing_weight_{name}": 0 for name in ("availability", "speed", "delivery", "fit")},
        "routing_temperature": 0.001,
        # The losses of these tests would use up the trust in a node.
        "exposure_base_msat": 0,
        # Only requests detect that a node fails.
        "nodes_refresh_s": 60,
    }
    with served_by(*rows, **settings) as process:
        yield process


@pytest.fixture(autouse=True)
def healed(nodes, served):
    """All nodes answer before and after each test, and their recorded requests are cleared."""
    for node in nodes.values():
        node.requests.clear()
    yield
    gone = [node for node in nodes.values() if node._loop is None]
    for node in gone:
        node.start()
    if gone:
        until(lambda: looked_for(served) and all(state["up"] for state in nodes_of(served).values()))
    for node in nodes.values():
        node.behave(
            delay_s=0.0,
            token_delay_s=0.0,
            fail_status=0,
            fail_body="",
            die_after_chunks=None,
            cut="",
            redirect="",
            close_delimited=False,
            raw=None,
        )


def looked_for(served):
    """A request for an unknown model makes the gateway refresh its lists."""
    return ask(served, "unknown-model").status == 404


@pytest.fixture
def bought(journal):
    """The node and state of each purchase in the journal since the test began."""
    begins = query(journal, "SELECT count(*) FROM purchases")[0][0]

    def read():
        found = query(journal, "SELECT peer_id, state FROM purchases ORDER BY rowid")
        return found[begins:]

    return read


def asked_once(nodes, *names):
    """One task each: a task that was lost on a reused connection before the first byte may have been sent once more."""
    tasks = {name: {call.headers["Idempotency-Key"] for call in node.calls()} for name, node in nodes.items()}
    assert {name: len(keys) for name, keys in tasks.items()} == {name: int(name in names) for name in nodes}
    assert all(len(node.calls()) <= 2 for node in nodes.values())


def is_error(answer, failure, which, *, price_msat):
    assert answer.whole and answer.status == failure.status, answer.body
    error = answer.error
    assert error["code"] == failure.code and error["param"] is None
    assert failure.message in error["message"]
    is_paid = failure.lost and price_msat
    assert answer.verdict == ("settled" if is_paid else "none")
    retry = failure.tell_retry and not is_paid
    assert answer.headers["x-should-retry"] == ("true" if retry else "false")
    assert ("retry-after" in answer.headers) is retry
    assert error["lcp"] == {
        "payment": answer.verdict,
        "job_id": answer.headers["x-lcp-job-id"],
        "price_msat": price_msat,
        "peer_id": f"node:{which}",
    }
    assert PROMPT not in answer.body.decode() and "127.0.0.1" not in answer.body.decode()


@STREAMED_OR_NOT
@FREE_OR_NOT
@pytest.mark.parametrize("name", REFUSALS)
def test_a_node_that_does_not_begin(nodes, served, bought, which, stream, name):
    failure = REFUSALS[name]
    nodes[which].behave(**failure.behaviour)
    answer = ask(served, OWN_MODEL[which], PROMPT, stream=stream)
    is_error(answer, failure, which, price_msat=PRICE_MSAT if which == "dear" else 0)
    asked_once(nodes, which)
    if which == "dear":
        until(lambda: bought() == [("node:dear", "undelivered" if failure.lost else "not_paid")])
    else:
        assert bought() == []


@FREE_OR_NOT
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("name", LATE)
def test_a_whole_answer_that_does_not_come_to_its_end(nodes, served, bought, which, path, name):
    failure = LATE[name]
    nodes[which].behave(**failure.behaviour)
    answer = ask(served, OWN_MODEL[which], PROMPT, path=path)
    is_error(answer, failure, which, price_msat=PRICE_MSAT if which == "dear" else 0)
    asked_once(nodes, which)
    if which == "dear":
        until(lambda: bought() == [("node:dear", "undelivered")])


@FREE_OR_NOT
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("name", LATE_STREAMS)
def test_a_cut_stream_is_never_taken_for_complete(nodes, served, bought, which, path, name):
    nodes[which].behave(**LATE_STREAMS[name])
    answer = ask(served, OWN_MODEL[which], PROMPT, path=path, stream=True)
    assert answer.status == 200 and not answer.whole
    body = answer.body[-4_000:]
    assert b"[DONE]" not in body and b"response.completed" not in body
    assert answer.verdict == ("settled" if which == "dear" else "none")
    if name != "huge":
        event, data = answer.blocks[-1]
        error = json.loads(data)["error"]
        assert event == ("error" if path == RESPONSES else "")
        assert error["type"] == "server_error" and error["code"] == "undelivered"
        assert error["lcp"]["payment"] == answer.verdict
    asked_once(nodes, which)
    if which == "dear":
        until(lambda: bought() == [("node:dear", "undelivered")])


@STREAMED_OR_NOT
@FREE_OR_NOT
def test_a_node_that_takes_too_long(nodes, served, bought, which, stream):
    """No other provider is asked, since the node may be at work; only a free task may be retried."""
    nodes[which].behave(delay_s=30.0)
    failure = Failure({}, 504, "upstream_timeout", lost=True)
    answer = ask(served, f"soon-{which}", PROMPT, stream=stream)
    is_error(answer, failure, f"soon-{which}", price_msat=PRICE_MSAT if which == "dear" else 0)
    asked_once(nodes, which)
    if which == "dear":
        until(lambda: bought() == [("node:soon-dear", "undelivered")])


@FREE_OR_NOT
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_stream_that_takes_too_long_is_cut(nodes, served, which, path):
    # In ten pieces and more.
    nodes[which].behave(token_delay_s=0.5)
    answer = ask(served, f"soon-{which}", PROMPT, path=path, stream=True)
    assert answer.status == 200 and not answer.whole
    assert b"[DONE]" not in answer.body and b"response.completed" not in answer.body
    assert answer.verdict == ("settled" if which == "dear" else "none")
    asked_once(nodes, which)


@STREAMED_OR_NOT
def test_nodes_that_do_not_listen(nodes, served, bought, stream):
    for which in OWN_MODEL:
        nodes[which].stop()
    # No provider is left.
    failure = Failure({}, 503, "no_provider")
    for which, price_msat in {"free": 0, "dear": PRICE_MSAT}.items():
        answer = ask(served, OWN_MODEL[which], PROMPT, stream=stream)
        is_error(answer, failure, which, price_msat=price_msat)
        assert nodes_of(served)[which]["up"] is False
    # From now on no provider offers these models.
    again = ask(served, OWN_MODEL["dear"], PROMPT, stream=stream)
    assert again.status == 404 and again.error["code"] == "model_not_available"
    until(lambda: bought() == [("node:dear", "not_paid")])
    asked_once(nodes)


@STREAMED_OR_NOT
@FREE_OR_NOT
@pytest.mark.parametrize("close_delimited", [False, True])
def test_an_answer_that_ends_with_its_connection_is_whole(nodes, served, which, stream, close_delimited):
    nodes[which].behave(close_delimited=close_delimited)
    answer = ask(served, OWN_MODEL[which], PROMPT, stream=stream)
    assert answer.status == 200 and answer.whole
    assert which in answer.body.decode()


@STREAMED_OR_NOT
@FREE_OR_NOT
@pytest.mark.parametrize("name", [*REFUSALS, *LATE])
def test_another_node_is_asked_only_where_nothing_was_paid(nodes, served, bought, which, stream, name):
    """Both offer the model; the spare one costs something too."""
    failure = {**REFUSALS, **LATE}[name]
    nodes[which].behave(**failure.behaviour)
    answer = ask(served, SHARED_MODEL[which], PROMPT, stream=stream)
    has_begun = stream and name in LATE
    is_paid = which == "dear" and failure.lost
    if failure.elsewhere and not is_paid and not has_begun:
        assert answer.status == 200 and answer.whole, answer.body
        assert answer.headers["x-lcp-peer-id"] == "node:spare"
        asked_once(nodes, which, "spare")
        states = [("node:dear", "not_paid")] if which == "dear" else []
        until(lambda: bought() == [*states, ("node:spare", "delivered")])
    else:
        assert answer.headers["x-lcp-peer-id"] == f"node:{which}"
        assert answer.status != 200 or not answer.whole
        asked_once(nodes, which)
        assert "node:spare" not in dict(bought())


@STREAMED_OR_NOT
def test_another_provider_serves_when_nodes_have_gone(nodes, served, stream):
    for which in OWN_MODEL:
        nodes[which].stop()
    for model in SHARED_MODEL.values():
        answer = ask(served, model, PROMPT, stream=stream)
        assert answer.status == 200 and answer.whole
        assert answer.headers["x-lcp-peer-id"] == "node:spare"
    assert [len(nodes[name].calls()) for name in ("free", "dear", "spare")] == [0, 0, 2]


@STREAMED_OR_NOT
def test_auto_fails_over_and_names_the_provider_that_answered(nodes, served, stream):
    for name in ("free", "dear"):
        nodes[name].behave(fail_status=503)
    answer = ask(served, "auto", PROMPT, stream=stream)
    assert answer.status == 200 and answer.whole, answer.body
    reported = json.loads(answer.headers["x-lcp-routing"])
    assert reported["node"] == "spare" and reported["model"] in SHARED_MODEL.values()
    assert answer.headers["x-lcp-peer-id"] == "node:spare"
    assert reported["price_msat"] == SPARE_MSAT
    [call] = nodes["spare"].calls()
    assert json.loads(call.body)["model"] == reported["model"]


@pytest.mark.parametrize("behaviour", [{"cut": "before_head"}, {"cut": "mid_stream"}])
@pytest.mark.parametrize("endpoint", ["chat", "chat-stream", "responses", "responses-stream"])
def test_the_sdk_told_to_try_three_times_is_charged_once(nodes, served, bought, behaviour, endpoint):
    nodes["dear"].behave(**behaviour)
    kind, _, stream = endpoint.partition("-")
    model = OWN_MODEL["dear"]
    with openai.OpenAI(base_url=served.api_url, api_key="unused", max_retries=2) as client:

        def call():
            if kind == "chat":
                messages = [{"role": "user", "content": PROMPT}]
                made = client.chat.completions.create(model=model, messages=messages, stream=bool(stream))
            else:
                made = client.responses.create(model=model, input=PROMPT, stream=bool(stream))
            return list(made) if stream else made

        with pytest.raises(openai.APIError):
            call()
    asked_once(nodes, "dear")
    until(lambda: bought() == [("node:dear", "undelivered")])


def test_the_sdk_gets_its_answer_from_a_free_node_that_recovers(nodes, served):
    nodes["free"].behave(cut="before_head")
    with openai.OpenAI(
        base_url=served.api_url,
        api_key="unused",
        max_retries=2,
        http_client=openai.DefaultHttpxClient(
            event_hooks={"response": [lambda _response: nodes["free"].behave(cut="")]}
        ),
    ) as client:
        answer = client.chat.completions.create(model=OWN_MODEL["free"], messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "free says: hi"
    # Two tasks; the first may have been sent once more on a new connection.
    calls = nodes["free"].calls()
    assert len({call.headers["Idempotency-Key"] for call in calls}) == 2
    assert len(calls) <= 3
