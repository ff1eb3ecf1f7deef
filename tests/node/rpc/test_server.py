"""LCPDService over a node's calls, as a client of gRPC sees it."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest

from lcp_gateway._gen.lcpd import extensions_pb2, lcpd_pb2_grpc
from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as pb3
from lcp_gateway.node.lcp.buying_events import Ended, Outcome, ResultData, ResultHead
from lcp_gateway.node.lcp.messages import JSON, SSE, Protocol, Status
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.rpc.server import CannotServe, RpcServer, ServerOptions
from lcp_gateway.node.runtime.calls import CallFailed, Delivered, Paid, PaymentReport, PaymentState
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support.certificates import certificate
from tests.support.fake_node_calls import JOB, NODE, PEER, PREIMAGE, SETTLED, FakeNodeCalls, result, whole

CHAT_BODY = b'{"model": "model-a", "messages": [{"role": "user", "content": "hello"}]}'


@asynccontextmanager
async def served(calls, **options):
    server = RpcServer(
        calls,
        ServerOptions(listen="127.0.0.1:0", **options),
        on_bug=lambda name, error: calls.bugs.append((name, str(error))),
    )
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@asynccontextmanager
async def client(calls, *, channel_options=(), **options):
    async with served(calls, **options) as address, grpc.aio.insecure_channel(address, channel_options) as channel:
        yield lcpd_pb2_grpc.LCPDServiceStub(channel)


@asynccontextmanager
async def client_v03(calls):
    async with served(calls, protocol=Protocol.V03) as address, grpc.aio.insecure_channel(address) as channel:

        def call(name, request, answer, *, stream=False):
            make = channel.unary_stream if stream else channel.unary_unary
            return make(f"/lcpd.v1.LCPDService/{name}", type(request).SerializeToString, answer.FromString)(request)

        yield call


def quote_request(body=CHAT_BODY, model="model-a", peer_id=PEER):
    return pb.RequestQuoteRequest(
        peer_id=peer_id, task={"openai_chat_completions_v1": {"request_json": body, "params": {"model": model}}}
    )


def accept(kind=pb.AcceptAndExecuteRequest, **changes):
    return kind(**({"peer_id": PEER, "job_id": JOB, "pay_invoice": True} | changes))


def stream():
    return accept(pb.AcceptAndExecuteStreamRequest)


async def refusal(call):
    """Return the status, the text and the payment of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            [event async for event in call]
        else:
            await call
    error = caught.value
    report = dict(error.trailing_metadata()).get("x-lcp-payment-bin")
    payment = None if report is None else extensions_pb2.PaymentReport.FromString(report)
    return error.code().name, error.details(), payment


async def test_peers_are_listed_with_their_manifests():
    async with client(FakeNodeCalls(models=("model-b", "model-a"))) as stub:
        (peer,) = (await stub.ListLCPPeers(pb.ListLCPPeersRequest())).peers
    assert (peer.peer_id, peer.address) == (PEER, "127.0.0.1:9735")
    assert peer.remote_manifest == pb.LCPManifest(
        protocol_version=2,
        max_payload_bytes=16_384,
        supported_tasks=[
            {"kind": 2, "openai_chat_completions_v1": {"model": "model-a"}},
            {"kind": 3, "openai_responses_v1": {"model": "model-a"}},
            {"kind": 2, "openai_chat_completions_v1": {"model": "model-b"}},
            {"kind": 3, "openai_responses_v1": {"model": "model-b"}},
        ],
        max_stream_bytes=4_194_304,
        max_job_bytes=8_388_608,
    )


async def test_the_node_names_itself_and_its_features():
    async with client(FakeNodeCalls()) as stub:
        info = await stub.GetLocalInfo(pb.GetLocalInfoRequest())
    assert (info.node_id, info.manifest.protocol_version) == (NODE, 2)
    assert info.software.name == "lcp-gateway"
    assert list(info.software.features) == ["payment-report", "purchase-limits", "payment-lookup"]


async def test_a_quote_is_asked_for_with_the_bytes_of_the_request():
    calls = FakeNodeCalls()
    async with client(calls) as stub:
        answer = await stub.RequestQuote(quote_request(b"  " + CHAT_BODY + b"\n"))
    ((protocol, peer_id, order),) = calls.asked
    assert (protocol, peer_id, order.task_kind) == (Protocol.V02, PEER, "openai.chat_completions.v1")
    assert order.request == b"  " + CHAT_BODY + b"\n"
    assert order.params == write_params("model-a")
    terms = answer.terms
    assert (answer.peer_id, terms.protocol_version, terms.job_id, terms.price_msat) == (PEER, 2, JOB, 418)
    assert (terms.quote_expiry.seconds, terms.quote_expiry.nanos) == (1_795_943_066, 0)
    assert (terms.terms_hash, terms.payment_request) == (b"\x22" * 32, "lnbcrt1")


@pytest.mark.parametrize("protocol", Protocol)
async def test_a_quote_that_no_clock_reaches_is_no_error_of_the_node(protocol):
    """A seller's quote may expire at any time of 64 bits; the client finds that it is none."""
    calls = FakeNodeCalls(quote={"quote_expiry": 2**64 - 1})
    if protocol is Protocol.V02:
        async with client(calls) as stub:
            expiry = (await stub.RequestQuote(quote_request())).terms.quote_expiry
    else:
        async with client_v03(calls) as call:
            spec = {
                "method": "m",
                "request_bytes": b"x",
                "request_content_type": "x/y",
                "request_content_encoding": "identity",
            }
            request = pb3.RequestQuoteRequest(peer_id=PEER, call=spec)
            answer = await call("RequestQuote", request, pb3.RequestQuoteResponse)
            expiry = answer.quote.quote_expiry
    assert expiry.seconds == 2**63 - 1 and not calls.bugs


async def test_a_responses_task_is_asked_for_as_one():
    calls = FakeNodeCalls()
    async with client(calls) as stub:
        task = {"openai_responses_v1": {"request_json": b'{"model": "m", "input": "x"}', "params": {"model": "m"}}}
        await stub.RequestQuote(pb.RequestQuoteRequest(peer_id=PEER, task=task))
    assert calls.asked[0][2].task_kind == "openai.responses.v1"


MALFORMED = {
    "a peer id that is too short": (
        quote_request(peer_id="02ab"),
        "validation error: peer_id: value does not match regex pattern `^[0-9a-fA-F]{66}$`",
    ),
    "no task": (
        pb.RequestQuoteRequest(peer_id=PEER),
        "validation error: task.spec: exactly one field is required in oneof",
    ),
    "no model": (
        quote_request(model=""),
        "validation error: task.openai_chat_completions_v1.params.model: value length must be at least 1 characters",
    ),
    "no JSON": (quote_request(b"{"), "openai_chat_completions_v1.request_json must be valid json"),
    "another model": (
        quote_request(model="b"),
        "openai_chat_completions_v1.params.model must match request_json.model",
    ),
    "no messages": (
        quote_request(b'{"model": "model-a"}'),
        "openai_chat_completions_v1.request_json.messages is required",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_quote_request_is_refused_before_the_peer_is_asked(case):
    request, text = MALFORMED[case]
    calls = FakeNodeCalls()
    async with client(calls) as stub:
        assert await refusal(stub.RequestQuote(request)) == ("INVALID_ARGUMENT", text, None)
    assert not calls.asked


async def test_a_peer_id_in_capitals_is_well_formed_and_looked_up_as_it_is():
    calls = FakeNodeCalls(quote=CallFailed(UpstreamStatus.NOT_FOUND, "peer not found"))
    async with client(calls) as stub:
        found = await refusal(stub.RequestQuote(quote_request(peer_id=PEER.upper())))
    assert found == ("NOT_FOUND", "peer not found", None)
    assert calls.asked[0][1] == PEER.upper()


async def test_a_failed_call_keeps_the_status_and_the_text_of_the_node():
    failure = CallFailed(UpstreamStatus.RESOURCE_EXHAUSTED, "lcp_error code=6: input stream exceeds local limits")
    async with client(FakeNodeCalls(quote=failure)) as stub:
        assert await refusal(stub.RequestQuote(quote_request())) == ("RESOURCE_EXHAUSTED", failure.details, None)
        away = FakeNodeCalls(quote=CallFailed(UpstreamStatus.UNAVAILABLE, "lnd is away"))
    async with client(away) as stub:
        assert (await refusal(stub.GetLocalInfo(pb.GetLocalInfoRequest())))[:2] == ("UNAVAILABLE", "lnd is away")


@pytest.mark.parametrize("length", [4_000, 60_000])
async def test_a_long_text_of_a_peer_is_shortened_and_reaches_the_client(length):
    failure = CallFailed(UpstreamStatus.RESOURCE_EXHAUSTED, "lcp_error code=7: " + "\u00fc" * length)
    async with client(FakeNodeCalls(items=[failure])) as stub:
        code, text, _ = await refusal(stub.AcceptAndExecute(accept()))
    assert code == "RESOURCE_EXHAUSTED"
    assert text.startswith("lcp_error code=7: \u00fc")
    assert 1_300 < len(text.encode()) <= 1_365


async def test_a_whole_result_comes_with_its_payment():
    async with client(FakeNodeCalls(items=whole(b'{"ok"', b": 1}"))) as stub:
        found = (await stub.AcceptAndExecute(accept())).result
    assert (found.status, found.result, found.result_len) == (pb.Result.STATUS_OK, b'{"ok": 1}', 9)
    assert found.result_hash == result(b'{"ok": 1}').sha256
    assert (found.content_type, found.content_encoding, found.message) == (JSON, "identity", "")
    assert found.payment.state == extensions_pb2.PaymentReport.STATE_SETTLED
    assert (found.payment.payment_hash, found.payment.preimage) == (SETTLED.payment_hash, PREIMAGE)
    assert found.payment.fee_msat == 7


async def test_a_streamed_result_comes_as_begin_chunks_end_and_result():
    async with client(FakeNodeCalls(items=whole(b'{"ok"', b": 1}"))) as stub:
        events = [event async for event in stub.AcceptAndExecuteStream(stream())]
    assert [event.WhichOneof("event") for event in events] == [
        "result_begin",
        "result_chunk",
        "result_chunk",
        "result_end",
        "result",
    ]
    begin, first, second, end, last = events
    assert (begin.result_begin.content_type, begin.result_begin.content_encoding) == (JSON, "identity")
    assert begin.result_begin.payment.preimage == PREIMAGE
    assert first.result_chunk.data + second.result_chunk.data == b'{"ok": 1}'
    assert (end.result_end.result_hash, end.result_end.result_len) == (result(b'{"ok": 1}').sha256, 9)
    assert (last.result.status, last.result.result, last.result.result_len) == (pb.Result.STATUS_OK, b"", 9)
    assert last.result.payment.fee_msat == 7


@pytest.mark.parametrize(
    ("outcome", "status", "number"), [(Outcome.FAILED, Status.FAILED, 2), (Outcome.CANCELLED, Status.CANCELLED, 3)]
)
async def test_a_result_that_is_not_ok_ends_the_call_well(outcome, status, number):
    said = result(b"", status=status, message="no", stream_id=None, sha256=None, total_len=None, content_type=None)
    items = [Paid(SETTLED), Delivered(Ended(outcome, paid=True, message="no"), said, SETTLED)]
    async with client(FakeNodeCalls(items=items)) as stub:
        found = (await stub.AcceptAndExecute(accept())).result
        events = [event async for event in stub.AcceptAndExecuteStream(stream())]
    assert (found.status, found.message, found.result_len, found.result) == (number, "no", 0, b"")
    assert [event.WhichOneof("event") for event in events] == ["result"]
    assert (events[0].result.status, events[0].result.message) == (number, "no")


@pytest.mark.parametrize("state", PaymentState)
async def test_a_failed_purchase_says_what_is_known_of_its_payment(state):
    report = PaymentReport(state=state, payment_hash=SETTLED.payment_hash)
    failure = CallFailed(UpstreamStatus.FAILED_PRECONDITION, "lcp_error code=12: result_hash mismatch", payment=report)
    items = [Paid(SETTLED), ResultHead(SSE), ResultData(b"x"), failure]
    async with client(FakeNodeCalls(items=items)) as stub:
        for call in (stub.AcceptAndExecute(accept()), stub.AcceptAndExecuteStream(stream())):
            code, text, payment = await refusal(call)
            assert (code, text) == ("FAILED_PRECONDITION", failure.details)
            assert payment.payment_hash == SETTLED.payment_hash
            assert extensions_pb2.PaymentReport.State.Name(payment.state) == f"STATE_{state.name}"


REFUSED_JOBS = {
    "a short id": ({"job_id": b"x"}, "validation error: job_id: value length must be 32 bytes"),
    "no consent": ({"pay_invoice": False}, "validation error: pay_invoice: value is required"),
    "no peer": ({"peer_id": ""}, "validation error: peer_id: value does not match regex pattern `^[0-9a-fA-F]{66}$`"),
}


@pytest.mark.parametrize("case", REFUSED_JOBS)
async def test_a_malformed_accept_pays_nothing(case):
    changes, text = REFUSED_JOBS[case]
    calls = FakeNodeCalls(items=whole(b"x"))
    async with client(calls) as stub:
        assert await refusal(stub.AcceptAndExecute(accept(**changes))) == ("INVALID_ARGUMENT", text, None)
        called = stub.AcceptAndExecuteStream(accept(pb.AcceptAndExecuteStreamRequest, **changes))
        assert await refusal(called) == ("INVALID_ARGUMENT", text, None)
    assert not calls.accepted


async def test_a_clients_limits_reach_the_purchase():
    calls = FakeNodeCalls(items=whole(b"x"))
    limits = (("x-lcp-max-price-msat", "418"), ("x-lcp-fee-limit-msat", "0"))
    async with client(calls) as stub:
        await stub.AcceptAndExecute(accept(), metadata=limits)
        await stub.AcceptAndExecute(accept())
    assert calls.accepted == [(PEER, JOB, 418, 0), (PEER, JOB, None, None)]


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", "0x1", "9" * 19])
async def test_a_limit_that_is_no_amount_pays_nothing(text):
    calls = FakeNodeCalls(items=whole(b"x"))
    async with client(calls) as stub:
        call = stub.AcceptAndExecute(accept(), metadata=(("x-lcp-fee-limit-msat", text),))
        refused = await refusal(call)
    assert refused == ("INVALID_ARGUMENT", "validation error: x-lcp-fee-limit-msat: value is no amount in msat", None)
    assert not calls.accepted


async def test_a_job_is_cancelled_with_its_reason():
    calls = FakeNodeCalls()
    async with client(calls) as stub:
        answer = await stub.CancelJob(pb.CancelJobRequest(peer_id=PEER, job_id=JOB, reason="\u00fc" * 256))
        assert answer.success
        found = await refusal(stub.CancelJob(pb.CancelJobRequest(peer_id=PEER, job_id=JOB, reason="x" * 257)))
    assert found[:2] == ("INVALID_ARGUMENT", "validation error: reason: value length must be at most 256 characters")
    assert calls.cancelled == [(PEER, JOB, "\u00fc" * 256)]


async def test_a_client_that_leaves_closes_the_purchase():
    calls = FakeNodeCalls(items=[Paid(SETTLED), ResultHead(SSE), asyncio.Event()])
    async with client(calls) as stub:
        call = stub.AcceptAndExecuteStream(stream())
        assert (await call.read()).HasField("result_begin")
        call.cancel()
        async with asyncio.timeout(60):
            await calls.left.wait()
    assert not calls.bugs


async def test_a_client_whose_time_is_over_closes_the_purchase():
    calls = FakeNodeCalls(items=[asyncio.Event()])
    async with client(calls) as stub:
        # A short time may be over before the call has come.
        for timeout_s in (0.2, 1, 5, 25):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.AcceptAndExecute(accept(), timeout=timeout_s)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if calls.accepted:
                break
        async with asyncio.timeout(60):
            await calls.left.wait()
    assert not calls.bugs


async def test_a_client_that_does_not_read_stops_its_own_purchase_only():
    """A purchase is asked for more only when the connection has taken what came before."""
    pieces = 4_000
    slow = FakeNodeCalls(items=whole(*[b"x" * 16_384] * pieces))
    # By itself gRPC widens its window, on a slow machine to 32 MiB and more.
    fixed_window = [("grpc.http2.bdp_probe", 0)]
    async with client(slow, channel_options=fixed_window) as stub:
        unread = stub.AcceptAndExecuteStream(stream())
        assert (await unread.read()).HasField("result_begin")
        given = -1
        async with asyncio.timeout(120):
            while given != slow.given:
                given = slow.given
                await stub.ListLCPPeers(pb.ListLCPPeersRequest())
                await asyncio.sleep(0.2)
        assert slow.given < pieces / 40
        assert not slow.left.is_set()
        unread.cancel()


async def test_an_error_of_the_node_itself_is_recorded_and_its_text_stays_here():
    calls = FakeNodeCalls(items=[KeyError("a prompt")])
    async with client(calls) as stub:
        for call in (stub.AcceptAndExecute(accept()), stub.AcceptAndExecuteStream(stream())):
            assert await refusal(call) == ("INTERNAL", "the node failed; its log says how", None)
    assert sorted(calls.bugs) == [("AcceptAndExecute", "'a prompt'"), ("AcceptAndExecuteStream", "'a prompt'")]


class _Gone:
    """The context of a call whose caller has left while an answer was being written; gRPC may not know it yet."""

    def __init__(self, is_known):
        self._is_known = is_known

    def invocation_metadata(self):
        return ()

    def cancelled(self):
        return self._is_known

    async def write(self, message):
        raise RuntimeError("the batch cannot be executed")


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_caller_that_has_left_is_no_error_of_the_node(is_known):
    calls = FakeNodeCalls(items=whole(b"x"))
    bugs = []
    server = RpcServer(calls, ServerOptions(), on_bug=lambda name, error: bugs.append(name))
    path = "/lcpd.v1.LCPDService/AcceptAndExecuteStream"
    handler = server._handler.service(SimpleNamespace(method=path, invocation_metadata=()))

    await handler.unary_stream(stream().SerializeToString(), _Gone(is_known))

    assert calls.left.is_set() and not bugs


async def test_a_request_above_4_mib_is_refused():
    body = json.dumps({"model": "model-a", "messages": ["x" * (4 << 20)]}).encode()
    async with client(FakeNodeCalls()) as stub:
        code, text, _ = await refusal(stub.RequestQuote(quote_request(body)))
        assert code == "RESOURCE_EXHAUSTED" and "larger than max" in text
        body = json.dumps({"model": "model-a", "messages": ["x" * ((4 << 20) - 1_000)]}).encode()
        await stub.RequestQuote(quote_request(body))


async def test_a_call_without_the_token_is_refused():
    calls = FakeNodeCalls(items=whole(b"x"))
    async with client(calls, token="s3cret") as stub:
        for metadata in [
            (),
            (("authorization", "Bearer s3cre"),),
            (("authorization", "s3cret"),),
            (("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")),
            (("macaroon", "s3cret"),),
        ]:
            for call in (
                stub.AcceptAndExecute(accept(), metadata=metadata),
                stub.AcceptAndExecuteStream(stream(), metadata=metadata),
                stub.ListLCPPeers(pb.ListLCPPeersRequest(), metadata=metadata),
            ):
                code, text, _ = await refusal(call)
                assert code == "UNAUTHENTICATED" and "s3cret" not in text
        assert not calls.accepted
        good = (("authorization", "Bearer s3cret"),)
        assert (await stub.AcceptAndExecute(accept(), metadata=good)).result.result == b"x"


async def test_tls_is_served_with_the_operators_certificate(tmp_path):
    pair = certificate(tmp_path)
    options = {"certificate": pair.certificate.read_bytes(), "key": pair.key.read_bytes()}
    async with served(FakeNodeCalls(), **options) as address:
        credentials = grpc.ssl_channel_credentials(pair.certificate.read_bytes())
        async with grpc.aio.secure_channel(address, credentials) as channel:
            stub = lcpd_pb2_grpc.LCPDServiceStub(channel)
            assert (await stub.GetLocalInfo(pb.GetLocalInfoRequest())).node_id == NODE


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", ":50051", "[::]:50051", "192.0.2.1:1", "node.example:1"])
def test_an_address_beyond_this_machine_needs_tls_and_a_token(listen):
    tls = {"certificate": b"c", "key": b"k"}
    for options in ({}, tls, {"token": "t"}):
        with pytest.raises(CannotServe, match="can be reached from other machines"):
            ServerOptions(listen=listen, **options).check()
    ServerOptions(listen=listen, token="t", **tls).check()
    ServerOptions(listen=listen, allow_insecure=True).check()


@pytest.mark.parametrize("listen", ["127.0.0.1:50051", "localhost:1", "[::1]:2", "unix:/run/node.sock"])
def test_an_address_of_this_machine_needs_neither(listen):
    ServerOptions(listen=listen).check()


async def test_a_port_that_is_taken_is_said():
    async with served(FakeNodeCalls()) as address:
        other = RpcServer(FakeNodeCalls(), ServerOptions(listen=address), on_bug=lambda *_: None)
        with pytest.raises(CannotServe, match=f"cannot listen on {address}"):
            await other.start()


async def test_version_3_asks_for_a_call_of_any_method():
    calls = FakeNodeCalls(quote={"response_content_type": SSE, "response_content_encoding": "identity"})
    spec = {
        "method": "images.v1",
        "params": b"\x01",
        "params_content_type": "x/y",
        "request_bytes": b"no JSON",
        "request_content_type": "text/plain",
        "request_content_encoding": "identity",
    }
    async with client_v03(calls) as call:
        asked = pb3.RequestQuoteRequest(peer_id=PEER, call=spec)
        quote = (await call("RequestQuote", asked, pb3.RequestQuoteResponse)).quote
        asked.call.params = b""
        asked.call.params_content_type = ""
        await call("RequestQuote", asked, pb3.RequestQuoteResponse)
        for field in ("method", "request_bytes", "request_content_type", "request_content_encoding"):
            wrong = pb3.RequestQuoteRequest(peer_id=PEER, call=spec)
            wrong.call.ClearField(field)
            code, text, _ = await refusal(call("RequestQuote", wrong, pb3.RequestQuoteResponse))
            assert code == "INVALID_ARGUMENT" and text.startswith(f"validation error: call.{field}: ")
    (_, _, first), (_, _, second) = calls.asked
    assert (first.task_kind, first.params, first.params_content_type) == ("images.v1", b"\x01", "x/y")
    assert (first.request, first.content_type) == (b"no JSON", "text/plain")
    assert (second.params, second.params_content_type) == (None, None)
    assert (quote.protocol_version, quote.call_id, quote.price_msat) == (3, JOB, 418)
    assert (quote.response_content_type, quote.response_content_encoding) == (SSE, "identity")


async def test_version_3_delivers_completes():
    calls = FakeNodeCalls(items=whole(b"ab", b"c"))
    async with client_v03(calls) as call:
        request = pb3.AcceptAndExecuteRequest(peer_id=PEER, call_id=JOB, pay_invoice=True)
        found = (await call("AcceptAndExecute", request, pb3.AcceptAndExecuteResponse)).complete
        streamed = pb3.AcceptAndExecuteStreamRequest(peer_id=PEER, call_id=JOB, pay_invoice=True)
        events = call("AcceptAndExecuteStream", streamed, pb3.AcceptAndExecuteStreamResponse, stream=True)
        kinds = [(event.WhichOneof("event"), event) async for event in events]
        short = pb3.CancelJobRequest(peer_id=PEER, call_id=b"x")
        refused = await refusal(call("CancelJob", short, pb3.CancelJobResponse))
    assert (found.status, found.response_bytes, found.response_len) == (pb3.Complete.STATUS_OK, b"abc", 3)
    assert (found.response_stream_id, found.response_hash) == (b"\x33" * 32, result(b"abc").sha256)
    assert (found.response_content_type, found.payment.preimage) == (JSON, PREIMAGE)
    names = ["response_begin", "response_chunk", "response_chunk", "response_end", "complete"]
    assert [name for name, _ in kinds] == names
    assert kinds[0][1].response_begin.payment.fee_msat == 7
    assert refused[1] == "validation error: call_id: value length must be 32 bytes"


async def test_version_3_lists_methods():
    async with client_v03(FakeNodeCalls()) as call:
        (peer,) = (await call("ListLCPPeers", pb3.ListLCPPeersRequest(), pb3.ListLCPPeersResponse)).peers
        info = await call("GetLocalInfo", pb3.GetLocalInfoRequest(), pb3.GetLocalInfoResponse)
    methods = [it.method for it in peer.remote_manifest.supported_methods]
    assert methods == ["openai.chat_completions.v1", "openai.responses.v1"]
    assert info.manifest == pb3.LCPManifest(
        protocol_version=3, max_payload_bytes=16_384, max_stream_bytes=4_194_304, max_call_bytes=8_388_608
    )


async def test_a_task_of_version_2_is_refused_by_version_3_and_the_other_way_round():
    calls = FakeNodeCalls()
    async with client(calls, protocol=Protocol.V03) as stub:
        code, text, _ = await refusal(stub.RequestQuote(quote_request()))
        assert code == "INVALID_ARGUMENT" and "call.method" in text
    async with served(calls) as address, grpc.aio.insecure_channel(address) as channel:
        spec = {
            "method": "openai.chat_completions.v1",
            "params": write_params("model-a"),
            "request_bytes": CHAT_BODY,
            "request_content_type": JSON,
            "request_content_encoding": "identity",
        }
        request = pb3.RequestQuoteRequest(peer_id=PEER, call=spec).SerializeToString()
        code, _, _ = await refusal(channel.unary_unary("/lcpd.v1.LCPDService/RequestQuote")(request))
    assert code in {"INTERNAL", "INVALID_ARGUMENT"}
    assert not calls.asked


GET_PAYMENT = "/lcpgateway.v1.NodeService/GetPayment"


@pytest.mark.parametrize("protocol", Protocol)
async def test_a_payment_is_looked_up_by_job_and_hash(protocol):
    calls = FakeNodeCalls()
    request = extensions_pb2.GetPaymentRequest(job_id=JOB, payment_hash=SETTLED.payment_hash)
    async with served(calls, protocol=protocol) as address, grpc.aio.insecure_channel(address) as channel:
        answer = await channel.unary_unary(GET_PAYMENT)(request.SerializeToString())
        for wrong in ({"job_id": b"x"}, {"payment_hash": b""}):
            malformed = extensions_pb2.GetPaymentRequest(**({"job_id": JOB, "payment_hash": b"\x01" * 32} | wrong))
            code, text, _ = await refusal(channel.unary_unary(GET_PAYMENT)(malformed.SerializeToString()))
            assert code == "INVALID_ARGUMENT" and next(iter(wrong)) in text
    assert calls.looked_up == [(JOB, SETTLED.payment_hash)]
    assert extensions_pb2.PaymentReport.FromString(answer) == extensions_pb2.PaymentReport(
        state="STATE_SETTLED", payment_hash=SETTLED.payment_hash, preimage=PREIMAGE, fee_msat=7
    )


async def test_a_payment_is_told_to_callers_with_the_token_only():
    calls = FakeNodeCalls()
    request = extensions_pb2.GetPaymentRequest(job_id=JOB, payment_hash=SETTLED.payment_hash).SerializeToString()
    async with served(calls, token="s3cret") as address, grpc.aio.insecure_channel(address) as channel:
        assert (await refusal(channel.unary_unary(GET_PAYMENT)(request)))[0] == "UNAUTHENTICATED"
        await channel.unary_unary(GET_PAYMENT)(request, metadata=[("authorization", "Bearer s3cret")])
    assert len(calls.looked_up) == 1


async def test_other_paths_are_not_served():
    async with served(FakeNodeCalls()) as address, grpc.aio.insecure_channel(address) as channel:
        for path in ("/lcpd.v1.LCPDService/Other", "/lcpd.v1.LCPDService/GetPayment", "/lnrpc.Lightning/GetInfo"):
            assert (await refusal(channel.unary_unary(path)(b"")))[0] == "UNIMPLEMENTED"


@pytest.mark.slow
async def test_calls_that_wait_for_a_busy_node_are_not_cancelled():
    """Regression: gRPC's C core cancels calls that no handler took for 30 s, also ones that pay."""
    busy_s = 31

    async def ask(address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub = lcpd_pb2_grpc.LCPDServiceStub(channel)
            waiting = [stub.RequestQuote(quote_request()) for _ in range(5)]
            return [(await one).terms.job_id for one in waiting]

    async with served(FakeNodeCalls()) as address:
        asking = asyncio.create_task(asyncio.to_thread(asyncio.run, ask(address)))
        await asyncio.sleep(0)
        time.sleep(busy_s)  # noqa: ASYNC251 - the node's loop is what is busy
        assert await asking == [JOB] * 5
