import asyncio
import hashlib
import json
import logging
import socket
from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.ports import ResultStatus, StreamBegin
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.openai.adapter import node_terms_hash
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.price import NodePrice
from tests.support.http_node import HttpNodeThread
from tests.upstreams.openai.buying import CHAT, KEY, PRICE, bought, failed, raw_task, streamed, task

# Quotes.


async def test_a_quote_is_made_without_a_call_to_the_node(opened):
    upstream = opened("http://127.0.0.1:9", price=PRICE)
    asked = task(max_tokens=7)
    before = datetime.now(UTC)
    quote = await upstream.request_quote(asked, "node:a", 1)
    after = datetime.now(UTC)
    assert (quote.source, quote.peer_id, quote.price_msat) == (ProviderSource.NODE, "node:a", 1_007)
    assert (quote.payment_request, quote.protocol_version) == ("", 0)
    assert before <= quote.expires_at - timedelta(seconds=300) <= after
    assert len(quote.job_id) == 32
    assert quote.job_id != (await upstream.request_quote(asked, "node:a", 1)).job_id


async def test_a_minutes_price_counts_for_as_long_as_the_node_may_take(opened):
    upstream = opened("http://x", price=NodePrice(per_minute_msat=600), timeout_s=30.0)
    assert (await upstream.request_quote(task(), "node:a", 1)).price_msat == 300


def test_the_terms_hash_is_over_what_the_documentation_says():
    asked = raw_task(b'{"model":"m"}')
    document = (
        b'["lcp-gateway.node.v1","N\\u00fc","openai.chat_completions.v1","m",5,"'
        + hashlib.sha256(asked.body).hexdigest().encode()
        + b'"]'
    )
    assert node_terms_hash("Nü", asked, 5) == hashlib.sha256(document).digest()


@pytest.mark.parametrize(
    ("peer_id", "kind", "status"),
    [
        ("node:b", CHAT, "NOT_FOUND"),
        ("a", CHAT, "NOT_FOUND"),
        ("02" * 33, CHAT, "NOT_FOUND"),
        ("node:a", TaskKind.RESPONSES, "UNIMPLEMENTED"),
    ],
)
async def test_a_task_that_the_node_does_not_serve_gets_no_quote(opened, peer_id, kind, status):
    upstream = opened("http://x", kinds=frozenset({CHAT}))
    with pytest.raises(UpstreamError) as caught:
        await upstream.request_quote(task(kind), peer_id, 1)
    assert caught.value.status == status


# Bytes.


@pytest.mark.parametrize("kind", TaskKind)
async def test_each_kind_of_task_goes_to_its_own_path_with_its_own_bytes(server, opened, kind):
    asked = task(kind)
    result = await bought(opened(server.base_url), asked)
    (seen,) = server.calls()
    path = {
        CHAT: "/v1/chat/completions",
        TaskKind.RESPONSES: "/v1/responses",
        TaskKind.COMPLETIONS: "/v1/completions",
        TaskKind.EMBEDDINGS: "/v1/embeddings",
    }[kind]
    assert (seen.path, seen.body) == (path, asked.body)
    assert result.status is ResultStatus.OK
    assert json.loads(result.body)["model"] == "m"
    assert (result.sha256, result.length) == (hashlib.sha256(result.body).digest(), len(result.body))


async def test_nothing_is_sent_but_what_the_adapter_says_itself(server, opened):
    await bought(opened(server.base_url), task())
    (seen,) = server.calls()
    headers = dict(seen.headers)
    # The job's id: it is the same if the task is sent again.
    assert len(bytes.fromhex(headers.pop("Idempotency-Key"))) == 32
    assert headers == {
        "Host": f"127.0.0.1:{server.port}",
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "lcp-gateway",
        "Authorization": f"Bearer {KEY}",
        "Accept": "*/*",
        "Content-Length": str(len(task().body)),
    }


async def test_without_a_key_none_is_sent(server, opened):
    server.server.api_key = ""
    await bought(opened(server.base_url, api_key=""), task())
    assert "Authorization" not in server.calls()[0].headers


ODD = (
    b'\n{ "model" :"m" ,"messages":[{"role":"user","content":"\\ud83d \\u0000 \xf0\x9f\x98\x80"}],'
    b'"x":1E+2,"x":1.0,"model2":"\\/"}\r\n '
)


async def test_unusual_bytes_go_in_and_come_out_as_they_are(server, opened):
    answer = b'\r\n{"a":"\xff\x00\xfe\\ud800"}' + bytes(range(256)) * 300
    server.behave(raw=answer, content_type="application/x-odd; q=1", content_encoding="x-y")
    upstream = opened(server.base_url)
    result = await bought(upstream, raw_task(ODD))
    begin, *chunks, end = await streamed(upstream, raw_task(ODD, stream=True))
    assert [seen.body for seen in server.calls()] == [ODD, ODD]
    assert result.body == b"".join(chunks) == answer
    assert begin == StreamBegin("application/x-odd; q=1", "x-y")
    assert (result.content_type, result.content_encoding) == (begin.content_type, begin.content_encoding)
    assert (end.sha256, end.length) == (hashlib.sha256(answer).digest(), len(answer))


async def test_a_compressed_answer_is_not_unpacked(server, opened):
    packed = b"\x1f\x8b\x08\x00not really"
    server.behave(raw=packed, content_encoding="gzip")
    assert (await bought(opened(server.base_url), task())).body == packed


async def test_a_body_of_many_megabytes_arrives_whole(server, opened):
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 5_000_000 + b'"}]}'
    server.behave(raw=b"{}")
    await bought(opened(server.base_url), raw_task(body))
    assert server.calls()[0].body == body
    assert server.calls()[0].headers["Content-Length"] == str(len(body))


# Limits.


async def test_a_result_that_is_too_long_is_not_read_to_its_end(server, opened):
    server.behave(raw=b"x" * 30_000_000)
    upstream = opened(server.base_url, price=PRICE, options={"max_result_bytes": 100_000})
    for call in (bought(upstream, task()), streamed(upstream, task(stream=True))):
        error = await failed(call)
        assert (error.status, error.evidence) == ("DATA_LOSS", Verdict.SETTLED)
    assert server.server.written_bytes < 30_000_000


async def test_two_hundred_requests_share_a_pool_of_eight(server, opened):
    server.behave(delay_s=0.01, together=8)
    upstream = opened(server.base_url, max_connections=8)
    results = await asyncio.gather(*(bought(upstream, task()) for _ in range(200)))
    assert len(results) == len(server.calls()) == 200
    assert server.server.most_under_way == 8


async def test_a_busy_node_can_still_be_asked_for_its_models(server, opened):
    server.behave(delay_s=120)
    upstream = opened(server.base_url, max_connections=1)
    busy = asyncio.create_task(bought(upstream, task()))
    while not server.server.under_way:
        await asyncio.sleep(0.01)
    assert await upstream.list_models("a", 60)
    busy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await busy


async def test_a_task_without_a_connection_in_time_bought_nothing(server, opened):
    server.behave(delay_s=120)
    upstream = opened(server.base_url, max_connections=1, price=PRICE)
    busy = asyncio.create_task(bought(upstream, task(), 120))
    while not server.server.under_way:
        await asyncio.sleep(0.01)
    error = await failed(bought(upstream, task(), 0.2))
    assert (error.status, error.evidence, error.retryable) == ("RESOURCE_EXHAUSTED", Verdict.NONE, True)
    assert len(server.calls()) == 1
    busy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await busy


# Failures, and whether they were paid.


def lost(price):
    return Verdict.NONE if price.is_free else Verdict.SETTLED


@pytest.fixture(params=[NodePrice(), PRICE], ids=["free", "priced"])
def price(request):
    return request.param


async def test_a_missing_node_was_sent_nothing(opened, price):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = []
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        upstream = opened(base_url, price=price, options={"on_down": gone.append})
        for call in (bought(upstream, task()), streamed(upstream, task(stream=True))):
            error = await failed(call)
            assert (error.status, error.evidence, error.retryable) == ("UNAVAILABLE", Verdict.NONE, True)
    assert gone == ["node:a", "node:a"]


async def test_a_name_that_does_not_resolve_is_said_to_be_one(opened):
    gone = []
    upstream = opened("http://nowhere.invalid/v1", price=PRICE, options={"on_down": gone.append})
    error = await failed(bought(upstream, task()))
    assert error.message == "the node's address does not resolve"
    assert error.evidence is Verdict.NONE
    assert gone == ["node:a"]


async def test_a_port_without_tls_was_sent_nothing(server, opened):
    upstream = opened(server.base_url.replace("http:", "https:"), price=PRICE)
    error = await failed(bought(upstream, task()))
    assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.NONE)


async def ended_by_time(server, buy):
    """Return the error of a purchase whose time was over once the node had it; ``buy`` is called with that time."""
    for limit_s in (0.3, 3, 30):
        earlier = len(server.calls())
        error = await failed(buy(limit_s))
        # The time is for connecting, too.
        if len(server.calls()) > earlier:
            break
    return error


async def test_a_node_that_answers_too_late_was_sent_the_task(server, opened, price):
    server.behave(delay_s=120)

    def by_the_nodes_limit(limit_s):
        return bought(opened(server.base_url, price=price, timeout_s=limit_s), task())

    def by_the_calls(limit_s):
        return bought(opened(server.base_url, price=price), task(), limit_s)

    for buy in (by_the_nodes_limit, by_the_calls):
        error = await ended_by_time(server, buy)
        assert (error.status, error.evidence) == ("DEADLINE_EXCEEDED", lost(price))


async def test_a_stream_that_takes_too_long_is_ended(server, opened):
    server.behave(token_delay_s=120)
    upstream = opened(server.base_url)
    error = await ended_by_time(server, lambda limit_s: streamed(upstream, task(stream=True), limit_s))
    assert error.status == "DEADLINE_EXCEEDED"


async def test_a_connection_that_is_lost_leaves_the_task_with_the_node(server, opened, price):
    upstream = opened(server.base_url, price=price)
    server.behave(cut="before_head")
    error = await failed(bought(upstream, task()))
    assert (error.status, error.evidence) == ("UNAVAILABLE", lost(price))
    server.behave(cut="mid_stream")
    error = await failed(bought(upstream, task()))
    assert (error.status, error.evidence) == ("UNAVAILABLE", lost(price))
    assert len(server.calls()) == 2, "nothing is sent again"


async def test_what_is_no_http_is_no_answer_and_not_booked(opened, price):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-hello\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        error = await failed(bought(opened(f"http://127.0.0.1:{port}", price=price), task()))
    assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.NONE)


async def test_bad_chunk_framing_is_lost(opened):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n")

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        upstream = opened(f"http://127.0.0.1:{port}", price=PRICE)
        for call in (bought(upstream, task()), streamed(upstream, task(stream=True))):
            error = await failed(call)
            assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.SETTLED)


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"), (500, "UNAVAILABLE")],
)
async def test_a_refusal_buys_nothing_and_says_why(server, opened, status, name):
    said = {"error": {"message": f"no, since Bearer {KEY} and {KEY}", "code": "because"}}
    server.behave(fail_status=status, fail_body=json.dumps(said))
    upstream = opened(server.base_url, price=PRICE)
    for call in (bought(upstream, task()), streamed(upstream, task(stream=True))):
        error = await failed(call)
        assert (error.status, error.evidence, error.code) == (name, Verdict.NONE, "because")
        assert error.message == "no, since Bearer [redacted] and [redacted]"


async def test_a_wrong_key_is_not_quoted_back(server, opened):
    error = await failed(bought(opened(server.base_url, api_key="wrong-key"), task()))
    assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.NONE)
    assert error.message == "the node refused the gateway's credentials"


async def test_a_redirect_is_not_followed(server, opened):
    with HttpNodeThread("other", ("m",)) as other:
        server.behave(redirect=f"{other.base_url}/chat/completions")
        upstream = opened(server.base_url)
        error = await failed(bought(upstream, task()))
        assert "redirects" in error.message
        server.behave(redirect=f"{other.base_url}/models")
        error = await failed(upstream.list_models("a", 60))
        assert "redirects" in error.message
        assert other.requests == []


async def test_an_endless_refusal_is_read_a_little(server, opened):
    server.behave(fail_status=500, fail_body="x" * 5_000_000)
    error = await failed(bought(opened(server.base_url), task()))
    assert error.message == "the node answered with HTTP status 500"


async def test_the_environments_proxy_is_not_used(server, opened, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert await bought(opened(server.base_url), task())


async def test_the_key_is_in_no_repr_and_no_log(server, opened, caplog):
    caplog.set_level(logging.DEBUG)
    upstream = opened(server.base_url)
    await bought(upstream, task())
    assert KEY not in repr(VirtualNode("a", "http://x", api_key=KEY))
    assert KEY not in repr(upstream)
    assert KEY not in caplog.text


async def test_after_closing_nothing_goes_out(server, opened):
    upstream = opened(server.base_url)
    await bought(upstream, task())
    await upstream.close()
    error = await failed(bought(upstream, task()))
    assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.NONE)
    await upstream.close()


async def test_a_cancelled_quote_needs_no_call(opened):
    upstream = opened("http://127.0.0.1:9")
    await upstream.cancel(await upstream.request_quote(task(), "node:a", 1), "changed my mind", 1)


# Charges.


async def test_the_charge_is_what_the_answers_usage_comes_to(server, opened):
    upstream = opened(server.base_url, price=PRICE)
    result = await bought(upstream, task())
    usage = json.loads(result.body)["usage"]
    assert result.charged_msat == 1_000 + usage["completion_tokens"]
    asked = task(stream=True, stream_options={"include_usage": True})
    *_, end = await streamed(upstream, asked)
    assert end.charged_msat == result.charged_msat
    *_, end = await streamed(upstream, task(TaskKind.RESPONSES, stream=True))
    assert end.charged_msat == result.charged_msat


async def test_an_answer_without_a_usage_is_charged_by_its_size_up_to_the_quote(server, opened):
    server.behave(usage=False)
    upstream = opened(server.base_url, price=PRICE)
    result = await bought(upstream, task())
    assert result.charged_msat == 1_000 + -(-len(result.body) // 4)
    assert (await bought(upstream, task(max_tokens=3))).charged_msat == 1_003


async def test_vectors_are_not_charged_as_text(server, opened):
    server.behave(raw=b'{"data": [' + b"0.5, " * 1_000 + b"1]}")
    upstream = opened(server.base_url, price=PRICE)
    assert (await bought(upstream, task(TaskKind.EMBEDDINGS))).charged_msat == 1_000


async def test_time_is_charged_from_the_moment_the_task_goes_out(server, opened):
    readings = iter([10.0, 13.0])
    price = NodePrice(per_minute_msat=60_000)
    upstream = opened(server.base_url, price=price, options={"clock": lambda: next(readings)})
    assert (await bought(upstream, task())).charged_msat == 3_000
