import asyncio
import subprocess

import grpc
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.dialect import UnsupportedVersion
from lcp_gateway.upstreams.lcpd.stream_events import read_events
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, TlsFiles, TransportKind
from tests.support.scripted_daemon import PEER, Daemon, begin, chunk, serving, terms

TASK = Task(TaskKind.CHAT_COMPLETIONS, "m", b'{"model": "m"}', stream=False)
NOT_READY = (grpc.StatusCode.FAILED_PRECONDITION, "lcp_error code=10: manifest not exchanged")
AWAY = (grpc.StatusCode.UNAVAILABLE, "away for a moment")


@pytest.fixture
async def daemon():
    async with serving(Daemon()) as running:
        yield running


@pytest.fixture(params=["grpcio", "direct"], autouse=True)
def transport(request):
    """Run each test over both transports."""
    return TransportKind(request.param)


@pytest.fixture
async def failures():
    return []


@pytest.fixture
async def upstream(daemon, failures, transport):
    made = LcpdUpstream(
        LcpdAddress(daemon.address, metadata=(("macaroon", "abc"),), transport=transport),
        on_error=lambda method, status: failures.append((method, status)),
    )
    yield made
    await made.close()


async def read(upstream, quote):
    return [event async for event in upstream.execute_stream(quote, TASK, 30)]


async def test_the_requests_bytes_go_to_the_peer_as_they_came(daemon, upstream):
    quote = await upstream.request_quote(TASK, PEER, 30)
    sent = daemon.requests["RequestQuote"][0]
    assert sent.peer_id == quote.peer_id == PEER
    assert sent.task.openai_chat_completions_v1.request_json == TASK.body
    assert sent.task.openai_chat_completions_v1.params.model == "m"
    assert (quote.price_msat, quote.expires_at.year, quote.job_id) == (5_000, 2100, b"\x11" * 32)
    assert daemon.metadata["macaroon"] == "abc"


async def test_a_responses_task_is_sent_as_one(daemon, upstream):
    await upstream.request_quote(Task(TaskKind.RESPONSES, "m", b"{}", stream=True), PEER, 30)
    sent = daemon.requests["RequestQuote"][0].task
    assert sent.WhichOneof("spec") == "openai_responses_v1"


@pytest.mark.parametrize("passing", [NOT_READY, AWAY])
async def test_a_quote_is_asked_for_again_when_that_helps(daemon, upstream, passing, failures):
    good = pb.RequestQuoteResponse(peer_id=PEER, terms=terms())
    daemon.answers["RequestQuote"] = [passing, passing, good]
    assert await upstream.request_quote(TASK, PEER, 30)
    assert len(daemon.requests["RequestQuote"]) == 3
    assert [method for method, _ in failures] == ["RequestQuote"] * 2


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c.name not in {"OK", "UNAVAILABLE", "CANCELLED"}])
async def test_a_quote_that_is_refused_is_not_asked_for_again(daemon, upstream, code):
    daemon.answers["RequestQuote"] = [(code, "no")]
    with pytest.raises(UpstreamError, match="no") as caught:
        await upstream.request_quote(TASK, PEER, 30)
    assert caught.value.status == code.name
    assert len(daemon.requests["RequestQuote"]) == 1


async def test_asking_again_ends_with_the_time_for_it(daemon, upstream):
    daemon.answers["RequestQuote"] = [AWAY]
    async with asyncio.timeout(60):
        with pytest.raises(UpstreamError, match=r"away|Deadline"):
            await upstream.request_quote(TASK, PEER, 0.3)


class _SlowToRefuse(Daemon):
    """A daemon that refuses after a while, and records the timeout of each call."""

    def __init__(self):
        super().__init__()
        self.left_s = []

    async def RequestQuote(self, request, context):  # noqa: N802 - gRPC's name
        self.left_s.append(context.time_remaining())
        await asyncio.sleep(0.3)
        await context.abort(*AWAY)


async def test_all_tries_share_one_time_out(transport):
    """No attempt may have the whole timeout for itself."""
    timeout_s = 9
    async with serving(_SlowToRefuse()) as daemon:
        upstream = LcpdUpstream(LcpdAddress(daemon.address, transport=transport))
        with pytest.raises(UpstreamError):
            await upstream.request_quote(TASK, PEER, timeout_s)
        await upstream.close()
    first, *later = daemon.left_s
    # gRPC rounds the time left up, to hundredths.
    rounding_s = 0.05
    assert later and first <= timeout_s + rounding_s
    # Each attempt had the time left by those before it, every one of which took 0.3 s.
    for tries, left_s in enumerate(later, 1):
        assert left_s <= timeout_s - 0.3 * tries + rounding_s


@pytest.mark.parametrize(
    "text",
    ["lcp_error code=6: payload too large", "quote_request is too large", "request_json is larger than max_job_bytes"],
)
async def test_a_request_too_large_for_a_peer_is_not_retried(daemon, upstream, text):
    """A retry would be too large again."""
    daemon.answers["RequestQuote"] = [(grpc.StatusCode.RESOURCE_EXHAUSTED, text)]
    with pytest.raises(UpstreamError) as caught:
        await upstream.request_quote(TASK, PEER, 30)
    assert not caught.value.retryable
    assert len(daemon.requests["RequestQuote"]) == 1


async def test_a_peer_that_is_busy_may_be_asked_again_later(daemon, upstream):
    daemon.answers["RequestQuote"] = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "lcp_error code=7: x")]
    with pytest.raises(UpstreamError) as caught:
        await upstream.request_quote(TASK, PEER, 30)
    assert caught.value.retryable


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c.name != "OK"])
async def test_the_call_that_may_pay_goes_out_once_whatever_comes_of_it(daemon, upstream, code):
    quote = await upstream.request_quote(TASK, PEER, 30)
    daemon.answers["AcceptAndExecute"] = [(code, "failed")]
    daemon.answers["AcceptAndExecuteStream"] = [(code, "failed")]
    with pytest.raises(UpstreamError):
        await upstream.execute(quote, TASK, 30)
    with pytest.raises(UpstreamError):
        await read(upstream, quote)
    assert len(daemon.requests["AcceptAndExecute"]) == 1
    assert len(daemon.requests["AcceptAndExecuteStream"]) == 1
    assert daemon.requests["AcceptAndExecute"][0].pay_invoice


@pytest.mark.parametrize("changes", [{"job_id": b"short"}, {"terms_hash": b""}, {"job_id": b"\x11" * 33}])
async def test_terms_that_make_no_sense_are_no_quote(daemon, upstream, changes):
    daemon.answers["RequestQuote"] = [pb.RequestQuoteResponse(peer_id=PEER, terms=terms(**changes))]
    with pytest.raises(UpstreamError) as caught:
        await upstream.request_quote(TASK, PEER, 30)
    assert caught.value.status == "DATA_LOSS"


async def test_a_quote_of_another_peer_is_no_quote(daemon, upstream):
    daemon.answers["RequestQuote"] = [pb.RequestQuoteResponse(peer_id="03", terms=terms())]
    with pytest.raises(UpstreamError, match="another peer"):
        await upstream.request_quote(TASK, PEER, 30)


async def test_an_expiry_beyond_the_calendar_is_no_quote(daemon, upstream):
    odd = terms()
    odd.quote_expiry.seconds = 2**62
    daemon.answers["RequestQuote"] = [pb.RequestQuoteResponse(peer_id=PEER, terms=odd)]
    with pytest.raises(UpstreamError, match="expiry"):
        await upstream.request_quote(TASK, PEER, 30)


async def test_a_stream_comes_in_order(daemon, upstream):
    quote = await upstream.request_quote(TASK, PEER, 30)
    end = pb.AcceptAndExecuteStreamResponse(result_end={"result_hash": b"h", "result_len": 3})
    done = pb.AcceptAndExecuteStreamResponse(result={"status": pb.Result.STATUS_OK})
    daemon.answers["AcceptAndExecuteStream"] = [
        begin(), *(chunk(b"%d," % n) for n in range(200)), end, done,
    ]  # fmt: skip
    first, *chunks, last_but_one, last = await read(upstream, quote)
    assert first == StreamBegin("text/event-stream", "identity")
    assert b"".join(chunks) == b"".join(b"%d," % n for n in range(200))
    assert last_but_one == StreamEnd(b"h", 3)
    assert isinstance(last, Result) and last.status is ResultStatus.OK


async def test_messages_before_a_break_are_returned_before_the_error(daemon, upstream):
    quote = await upstream.request_quote(TASK, PEER, 30)
    daemon.answers["AcceptAndExecuteStream"] = [begin(), chunk(b"half"), AWAY]
    events = []
    with pytest.raises(UpstreamError, match="away"):
        async for event in upstream.execute_stream(quote, TASK, 30):
            events.append(event)
    assert events[-1] == b"half"


async def test_chunks_before_a_message_that_cannot_be_read_are_given():
    good = chunk(b"half").SerializeToString()
    events = read_events([good, b"\xff\xff"], pytest.fail)
    assert next(events) == b"half"
    with pytest.raises(UpstreamError, match="unknown kind"):
        next(events)


async def test_a_stream_that_is_left_is_cancelled_at_the_daemon(daemon, upstream, transport):
    quote = await upstream.request_quote(TASK, PEER, 30)
    ended = asyncio.Event()

    async def stream(request, context):
        try:
            yield begin()
            while True:
                yield chunk(b"x" * 1000)
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    daemon.AcceptAndExecuteStream = stream
    async with serving(daemon) as other:
        left = LcpdUpstream(LcpdAddress(other.address, transport=transport))
        events = left.execute_stream(quote, TASK, 30)
        await anext(events)
        await anext(events)
        await events.aclose()
        async with asyncio.timeout(60):
            await ended.wait()
        await left.close()


async def test_an_unknown_version_is_a_clear_error(daemon, upstream):
    daemon.version = 4
    with pytest.raises(UnsupportedVersion, match="version 4; this gateway knows the versions 2 and 3"):
        await upstream.local_info(30)


async def test_peers_are_listed_with_what_they_take(daemon, upstream):
    chat = {"kind": 2, "openai_chat_completions_v1": {"model": "a"}}
    respond = {"kind": 3, "openai_responses_v1": {"model": "b"}}
    unknown = {"kind": 99}
    nameless = {"kind": 2}
    manifest = {
        "protocol_version": 2, "max_payload_bytes": 16_384, "max_inflight_jobs": 4,
        "supported_tasks": [chat, chat, respond, unknown, nameless],
    }  # fmt: skip
    peer = {"peer_id": PEER, "address": "127.0.0.1:9735", "remote_manifest": manifest}
    daemon.answers["ListLCPPeers"] = [pb.ListLCPPeersResponse(peers=[peer])]
    (found,) = await upstream.list_peers(30)
    assert dict(found.models) == {TaskKind.CHAT_COMPLETIONS: ("a",), TaskKind.RESPONSES: ("b",)}
    assert (found.peer_id, found.max_payload_bytes, found.max_inflight_jobs) == (PEER, 16_384, 4)


async def test_the_daemons_text_is_made_harmless(daemon, upstream):
    daemon.answers["RequestQuote"] = [(grpc.StatusCode.INTERNAL, "line\none\x1b[31m" + "x" * 9_000)]
    with pytest.raises(UpstreamError) as caught:
        await upstream.request_quote(TASK, PEER, 30)
    assert caught.value.message.isprintable() and len(caught.value.message) <= 500


async def test_a_cancel_says_why(daemon, upstream):
    quote = await upstream.request_quote(TASK, PEER, 30)
    await upstream.cancel(quote, "r" * 300, 30)
    (sent,) = daemon.requests["CancelJob"]
    assert (sent.job_id, sent.reason) == (quote.job_id, "r" * 256)


async def test_a_daemon_on_a_unix_socket_is_reached(tmp_path, transport):
    async with serving(Daemon(), f"unix:{tmp_path}/lcpd.sock") as running:
        upstream = LcpdUpstream(LcpdAddress(running.address, transport=transport))
        assert (await upstream.local_info(30)).node_id == PEER
        await upstream.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=lcpd.test", "-addext", "subjectAltName=DNS:lcpd.test", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


async def test_a_daemon_behind_tls_is_reached_with_a_client_certificate(certificate, transport):
    key, cert = (certificate / "key.pem").read_bytes(), (certificate / "cert.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([(key, cert)], cert, require_client_auth=True)
    files = TlsFiles(
        ca=certificate / "cert.pem", certificate=certificate / "cert.pem",
        key=certificate / "key.pem", server_name="lcpd.test",
    )  # fmt: skip
    async with serving(Daemon(), credentials=credentials) as running:
        trusted = LcpdUpstream(LcpdAddress(running.address, tls=files, transport=transport))
        assert (await trusted.local_info(30)).protocol_version == 2
        await trusted.close()
        stranger = LcpdUpstream(
            LcpdAddress(running.address, tls=TlsFiles(ca=files.ca, server_name="lcpd.test"), transport=transport)
        )
        with pytest.raises(UpstreamError):
            await stranger.local_info(30)
        await stranger.close()
