"""Daemons of versions 2 and 3: each is spoken to in its own messages, and a quote of one is never accepted on the other."""

import asyncio
import contextlib
import hashlib

import grpc
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as v03
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, RpcError, TransportKind
from tests.support.scripted_daemon import PEER, Daemon, quote_v03, serving

CHAT = Task(TaskKind.CHAT_COMPLETIONS, "llama", b'{"model": "llama"}', stream=False)
RESPONSES = Task(TaskKind.RESPONSES, "llama", b'{"model":"llama","input":"x"}', stream=True)
BODY = b"data: 1\n\ndata: [DONE]\n\n"
PAYING = ("AcceptAndExecute", "AcceptAndExecuteStream")


@pytest.fixture(params=["grpcio", "direct"], autouse=True)
def transport(request):
    """Run each test over both transports."""
    return TransportKind(request.param)


@pytest.fixture
async def daemon():
    async with serving(Daemon(version=3)) as running:
        yield running


@pytest.fixture
async def upstream(daemon, transport):
    made = LcpdUpstream(LcpdAddress(daemon.address, transport=transport))
    yield made
    await made.close()


def complete(**changes):
    fields = {
        "status": v03.Complete.STATUS_OK, "response_stream_id": b"s" * 32,
        "response_hash": hashlib.sha256(BODY).digest(), "response_len": len(BODY),
        "response_content_type": "text/event-stream", "response_content_encoding": "identity",
        **changes,
    }  # fmt: skip
    return v03.Complete(**{name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize("task", [CHAT, RESPONSES])
async def test_a_task_goes_out_as_a_call_of_its_method(daemon, upstream, task):
    quote = await upstream.request_quote(task, PEER, 30)
    (sent,) = daemon.requests["RequestQuote"]
    assert sent.peer_id == PEER
    assert sent.call.method == task.kind.value
    assert sent.call.params == b"\x01\x05llama"
    assert sent.call.request_bytes == task.body
    assert sent.call.request_content_type == "application/json; charset=utf-8"
    assert sent.call.request_content_encoding == "identity"
    assert (quote.protocol_version, quote.job_id, quote.price_msat) == (3, b"\x11" * 32, 5_000)
    assert (quote.response_content_type, quote.response_content_encoding) == (None, None)


async def test_what_a_quote_promises_of_its_response_is_part_of_it(daemon, upstream):
    promised = quote_v03(response_content_type="application/json", response_content_encoding="identity")
    daemon.answers["RequestQuote"] = [v03.RequestQuoteResponse(peer_id=PEER, quote=promised)]
    quote = await upstream.request_quote(CHAT, PEER, 30)
    assert (quote.response_content_type, quote.response_content_encoding) == ("application/json", "identity")


@pytest.mark.parametrize(
    "changes",
    [
        {"call_id": b"short"},
        {"terms_hash": b""},
        {"response_content_type": "text/plain"},
        {"response_content_encoding": "identity"},
        {"response_content_type": "x" * 257, "response_content_encoding": "identity"},
    ],
)
async def test_quotes_that_make_no_sense_are_no_quotes(daemon, upstream, changes):
    daemon.answers["RequestQuote"] = [v03.RequestQuoteResponse(peer_id=PEER, quote=quote_v03(**changes))]
    with pytest.raises(UpstreamError) as caught:
        await upstream.request_quote(CHAT, PEER, 30)
    assert caught.value.status == "DATA_LOSS"


async def test_a_quote_of_another_version_than_was_asked_for_is_no_quote(daemon, upstream):
    odd = quote_v03(protocol_version=2)
    daemon.answers["RequestQuote"] = [v03.RequestQuoteResponse(peer_id=PEER, quote=odd)]
    with pytest.raises(UpstreamError, match="version 2, and version 3 was asked for"):
        await upstream.request_quote(CHAT, PEER, 30)


async def test_a_whole_result_is_read_by_the_names_of_version_3(daemon, upstream):
    quote = await upstream.request_quote(CHAT, PEER, 30)
    daemon.answers["AcceptAndExecute"] = [v03.AcceptAndExecuteResponse(complete=complete(response_bytes=BODY))]
    result = await upstream.execute(quote, CHAT, 30)
    (sent,) = daemon.requests["AcceptAndExecute"]
    assert (sent.peer_id, sent.call_id, sent.pay_invoice) == (PEER, quote.job_id, True)
    assert result == Result(
        status=ResultStatus.OK, body=BODY, sha256=hashlib.sha256(BODY).digest(), length=len(BODY),
        content_type="text/event-stream", content_encoding="identity", message="",
    )  # fmt: skip


async def test_a_failed_call_says_why(daemon, upstream):
    quote = await upstream.request_quote(CHAT, PEER, 30)
    failed = v03.Complete(status=v03.Complete.STATUS_FAILED, message="no power")
    daemon.answers["AcceptAndExecute"] = [v03.AcceptAndExecuteResponse(complete=failed)]
    result = await upstream.execute(quote, CHAT, 30)
    assert (result.status, result.message, result.length) == (ResultStatus.FAILED, "no power", 0)


@pytest.mark.parametrize("stated", ["text/event-stream", ""])
async def test_a_stream_is_one_of_events_where_its_peer_states_no_type(daemon, upstream, stated):
    quote = await upstream.request_quote(RESPONSES, PEER, 30)
    event = v03.AcceptAndExecuteStreamResponse
    digest = hashlib.sha256(BODY).digest()
    daemon.answers["AcceptAndExecuteStream"] = [
        event(response_begin={"content_type": stated, "content_encoding": "identity"}),
        event(response_chunk={"data": BODY}),
        event(response_end={"response_hash": digest, "response_len": len(BODY)}),
        event(complete=complete()),
    ]
    begin, body, end, last = [event async for event in upstream.execute_stream(quote, RESPONSES, 30)]
    assert begin == StreamBegin(stated or "text/event-stream; charset=utf-8", "identity")
    assert (body, end) == (BODY, StreamEnd(digest, len(BODY)))
    assert (last.status, last.sha256, last.length) == (ResultStatus.OK, digest, len(BODY))


async def test_a_cancel_names_the_call(daemon, upstream):
    quote = await upstream.request_quote(CHAT, PEER, 30)
    await upstream.cancel(quote, "not taken", 30)
    (sent,) = daemon.requests["CancelJob"]
    assert (sent.peer_id, sent.call_id, sent.reason) == (PEER, quote.job_id, "not taken")


async def test_peers_take_the_kinds_whose_methods_they_list(daemon, upstream):
    def peer(number, *methods):
        manifest = {
            "protocol_version": 3, "max_payload_bytes": 16_384, "max_stream_bytes": 100, "max_call_bytes": 200,
            "max_inflight_calls": 4, "supported_methods": methods,
        }  # fmt: skip
        return {"peer_id": f"02{number:064x}", "address": "a:1", "remote_manifest": manifest}

    chat, responses = {"method": "openai.chat_completions.v1"}, {"method": "openai.responses.v1"}
    as_text = {**chat, "request_content_types": ["text/plain", ""]}
    as_json = {**chat, "request_content_types": ["Application/JSON"], "docs_uri": "https://x", "policy_notice": "no"}
    listed = [
        peer(1, chat, responses),
        peer(2, as_text),
        peer(3, as_json),
        peer(4, {"method": "acme.paint.v2"}),
        peer(5),
    ]
    daemon.answers["ListLCPPeers"] = [v03.ListLCPPeersResponse(peers=listed)]
    both = frozenset({TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES})
    chat_only = frozenset({TaskKind.CHAT_COMPLETIONS})
    found = await upstream.list_peers(30)
    assert [one.open_kinds for one in found] == [both, frozenset(), chat_only, frozenset(), frozenset()]
    assert {(one.protocol_version, one.max_job_bytes, one.max_inflight_jobs, len(one.models)) for one in found} == {
        (3, 200, 4, 0)
    }


NO_MODEL = 'lcp_error code=3: unsupported model: "nope" (supported: model-a, model-b'


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (f"{NO_MODEL})", ("model-a", "model-b")),
        (NO_MODEL, ("model-a",)),
        ('lcp_error code=3: unsupported model: "(supported: x)" (supported: model-a)', ("model-a",)),
        ('lcp_error code=3: unsupported model: "nope" (supported: )', ()),
        ("lcp_error code=3: unsupported method", ()),
        ('lcp_error code=8: unsupported model: "nope" (supported: model-a)', ()),
    ],
)
async def test_the_models_that_a_peer_names_in_a_refusal_are_a_hint(daemon, upstream, text, models):
    method = {"method": "openai.chat_completions.v1"}
    daemon.answers["ListLCPPeers"] = [
        v03.ListLCPPeersResponse(peers=[{"peer_id": PEER, "remote_manifest": {"supported_methods": [method]}}])
    ]
    daemon.answers["RequestQuote"] = [(grpc.StatusCode.FAILED_PRECONDITION, text)]
    with pytest.raises(UpstreamError):
        await upstream.request_quote(CHAT, PEER, 30)
    (found,) = await upstream.list_peers(30)
    assert found.models.get(TaskKind.CHAT_COMPLETIONS, ()) == models
    assert found.open_kinds == {TaskKind.CHAT_COMPLETIONS}, "it may have others"


@pytest.mark.parametrize(
    ("version", "status", "text", "retryable"),
    [
        (2, "RESOURCE_EXHAUSTED", "lcp_error code=6: payload too large", False),
        (2, "RESOURCE_EXHAUSTED", "lcp_error code=6", False),
        (2, "RESOURCE_EXHAUSTED", "lcp_error code=7: busy", True),
        (3, "RESOURCE_EXHAUSTED", "lcp_error code=7: busy", False),
        (3, "RESOURCE_EXHAUSTED", "lcp_error code=8: busy", True),
        (3, "RESOURCE_EXHAUSTED", "lcp_error code=13: x", False),
        (2, "FAILED_PRECONDITION", "lcp_error code=2: unsupported task", False),
        (2, "FAILED_PRECONDITION", "lcp_error code=10: x", True),
        (3, "FAILED_PRECONDITION", "lcp_error code=10: x", True),
        (3, "FAILED_PRECONDITION", "lcp_error code=2: x", True),
        (3, "FAILED_PRECONDITION", "lcp_error code=3: unsupported method", False),
        (2, "RESOURCE_EXHAUSTED", "input stream exceeds peer max_stream_bytes/max_job_bytes", False),
        (3, "RESOURCE_EXHAUSTED", "request stream exceeds peer max_stream_bytes/max_call_bytes", False),
    ],
)
async def test_the_number_of_a_peers_error_is_read_by_the_daemons_version(version, status, text, retryable, transport):
    async with serving(Daemon(version=version)) as daemon:
        upstream = LcpdUpstream(LcpdAddress(daemon.address, transport=transport))
        daemon.answers["RequestQuote"] = [(grpc.StatusCode[status], text)]
        with pytest.raises(UpstreamError) as caught:
            await upstream.request_quote(CHAT, PEER, 30)
        assert caught.value.retryable is retryable
        await upstream.close()


class Swapped:
    """A daemon on a socket that another one takes over: ``versions`` collects what the adapter found."""

    def __init__(self, tmp_path, transport):
        self.address = f"unix:{tmp_path}/lcpd.sock"
        self.versions = []
        self.connection = None
        self.upstream = LcpdUpstream(
            LcpdAddress(self.address, transport=transport),
            on_daemon=lambda info: self.versions.append(info.protocol_version),
        )

    @contextlib.asynccontextmanager
    async def run(self, version):
        daemon = Daemon(version=version)
        daemon.answers["AcceptAndExecuteStream"] = []
        async with serving(daemon, self.address):
            self.connection = await self.another_connection()
            yield daemon

    async def another_connection(self):
        """Wait until the transport has noticed the end of the connection before, which is not at once."""
        async with asyncio.timeout(60):
            while True:
                try:
                    connection = await self.upstream._transport.connect(30)
                except RpcError:
                    connection = self.connection
                if connection is not self.connection:
                    return connection
                await asyncio.sleep(0.01)


@pytest.fixture
async def swapped(tmp_path, transport):
    made = Swapped(tmp_path, transport)
    yield made
    await made.upstream.close()


async def accept(upstream, quote, streamed):
    if streamed:
        return [event async for event in upstream.execute_stream(quote, CHAT, 30)]
    return await upstream.execute(quote, CHAT, 30)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
async def test_a_quote_is_not_accepted_on_a_daemon_of_the_other_version(swapped, before, after, streamed):
    upstream = swapped.upstream
    async with swapped.run(before):
        quote = await upstream.request_quote(CHAT, PEER, 30)
    async with swapped.run(after) as other:
        with pytest.raises(UpstreamError, match=f"exchanged for one of version {after}; nothing was paid") as caught:
            await accept(upstream, quote, streamed)
        assert (caught.value.evidence, caught.value.retryable) == (Verdict.NONE, True)
        assert not any(other.requests[method] for method in PAYING)
        again = await upstream.request_quote(CHAT, PEER, 30)
        assert again.protocol_version == after
        assert swapped.versions == [before, after]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("version", [2, 3])
async def test_a_quote_outlives_a_new_connection_to_a_daemon_of_its_version(swapped, version, streamed):
    upstream = swapped.upstream
    async with swapped.run(version):
        quote = await upstream.request_quote(CHAT, PEER, 30)
    async with swapped.run(version) as again:
        await accept(upstream, quote, streamed)
        assert len(again.requests["GetLocalInfo"]) == 1, "the version is asked for before the first accept"
        assert sum(len(again.requests[method]) for method in PAYING) == 1
    assert swapped.versions == [version]


@pytest.mark.parametrize("streamed", [False, True])
async def test_where_the_daemon_is_away_nothing_is_paid(swapped, streamed):
    async with swapped.run(2):
        quote = await swapped.upstream.request_quote(CHAT, PEER, 30)
    with pytest.raises(UpstreamError):
        # Until it is asked, the transport may not have noticed the end of its connection.
        await swapped.upstream.local_info(5)
    with pytest.raises(UpstreamError) as caught:
        await accept(swapped.upstream, quote, streamed)
    assert (caught.value.evidence, caught.value.is_away) == (Verdict.NONE, True)


@pytest.mark.parametrize("streamed", [False, True])
async def test_where_the_daemon_does_not_tell_its_version_nothing_is_paid(swapped, streamed):
    async with swapped.run(2):
        quote = await swapped.upstream.request_quote(CHAT, PEER, 30)
    async with swapped.run(2) as daemon:
        daemon.answers["GetLocalInfo"] = [(grpc.StatusCode.INTERNAL, "lnd is away")]
        with pytest.raises(UpstreamError, match="lnd is away") as caught:
            await accept(swapped.upstream, quote, streamed)
        assert caught.value.evidence is Verdict.NONE
        assert not any(daemon.requests[method] for method in PAYING)


async def test_a_call_for_a_connection_that_has_ended_is_not_sent(swapped):
    raw = swapped.upstream._transport
    async with swapped.run(2):
        first = swapped.connection
        assert await raw.connect(30) is first
    async with swapped.run(2) as daemon:
        path = "/lcpd.v1.LCPDService/GetLocalInfo"
        with pytest.raises(RpcError) as unary:
            await raw.unary(path, b"", 5, (), on=first)
        with pytest.raises(RpcError) as streamed:
            await raw.stream(path, b"", 5, (), on=first).read()
        assert unary.value.not_processed and streamed.value.not_processed
        assert not daemon.requests["GetLocalInfo"]
        assert await raw.unary(path, b"", 60, (), on=swapped.connection)


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        (2, v03.AcceptAndExecuteResponse(complete=complete(response_bytes=BODY))),
        (3, pb.AcceptAndExecuteResponse(result={"status": 1, "result": BODY, "result_len": len(BODY)})),
    ],
)
async def test_a_result_in_the_other_versions_form_is_not_misread(version, answer, transport):
    async with serving(Daemon(version=version)) as daemon:
        upstream = LcpdUpstream(LcpdAddress(daemon.address, transport=transport))
        daemon.answers["AcceptAndExecute"] = [answer]
        quote = await upstream.request_quote(CHAT, PEER, 30)
        with pytest.raises(UpstreamError, match="another version") as caught:
            await upstream.execute(quote, CHAT, 30)
        assert (caught.value.status, caught.value.evidence) == ("DATA_LOSS", Verdict.SETTLED)
        await upstream.close()


async def test_the_version_is_asked_for_once_a_connection(daemon, upstream):
    for _ in range(3):
        await upstream.request_quote(CHAT, PEER, 30)
    assert len(daemon.requests["GetLocalInfo"]) == 1
