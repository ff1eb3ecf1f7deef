"""What a node of lcp-gateway says of payments, as the adapter reads it over each transport."""

import grpc
import pytest

from lcp_gateway._gen.lcpd import extensions_pb2
from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.ports import Result, StreamBegin
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.payment_report import Software
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, TransportKind
from tests.support.scripted_daemon import PEER, Daemon, serving

TASK = Task(TaskKind.CHAT_COMPLETIONS, "m", b'{"model": "m"}', stream=False)
PREIMAGE = b"\x77" * 32
SETTLED = {"state": "STATE_SETTLED", "payment_hash": b"\x01" * 32, "preimage": PREIMAGE, "fee_msat": 7}
READ = PaymentReport(verdict=Verdict.SETTLED, fee_msat=7, preimage=PREIMAGE)
STATES = {"STATE_NONE": Verdict.NONE, "STATE_SETTLED": Verdict.SETTLED, "STATE_UNKNOWN": Verdict.UNKNOWN}


def failing(text, report: bytes | None):
    trailers = () if report is None else (("x-lcp-payment-bin", report),)
    return (grpc.StatusCode.FAILED_PRECONDITION, text, trailers)


def written(**fields) -> bytes:
    return extensions_pb2.PaymentReport(**fields).SerializeToString()


@pytest.fixture
async def daemon():
    async with serving(Daemon()) as running:
        yield running


@pytest.fixture(params=["grpcio", "direct"])
async def upstream(daemon, request):
    made = LcpdUpstream(LcpdAddress(daemon.address, transport=TransportKind(request.param)), fee_limit_msat=1_234)
    yield made
    await made.close()


async def fail(upstream, *, stream: bool) -> UpstreamError:
    quote = await upstream.request_quote(TASK, PEER, 30)
    with pytest.raises(UpstreamError) as caught:
        if stream:
            [event async for event in upstream.execute_stream(quote, TASK, 30)]
        else:
            await upstream.execute(quote, TASK, 30)
    return caught.value


async def test_fee_and_preimage_come_with_a_whole_result(daemon, upstream):
    result = {"status": pb.Result.STATUS_OK, "result": b"x", "payment": SETTLED}
    daemon.answers["AcceptAndExecute"] = [pb.AcceptAndExecuteResponse(result=result)]
    quote = await upstream.request_quote(TASK, PEER, 30)
    assert (await upstream.execute(quote, TASK, 30)).payment == READ


async def test_fee_and_preimage_come_with_the_head_of_a_streamed_result(daemon, upstream):
    daemon.answers["AcceptAndExecuteStream"] = [
        pb.AcceptAndExecuteStreamResponse(result_begin={"content_type": "x", "payment": SETTLED}),
        pb.AcceptAndExecuteStreamResponse(result={"status": pb.Result.STATUS_FAILED, "payment": SETTLED}),
    ]
    quote = await upstream.request_quote(TASK, PEER, 30)
    begin, result = [event async for event in upstream.execute_stream(quote, TASK, 30)]
    assert isinstance(begin, StreamBegin) and begin.payment == READ
    assert isinstance(result, Result) and result.payment == READ


async def test_lcpd_grpcd_reports_nothing(daemon, upstream):
    quote = await upstream.request_quote(TASK, PEER, 30)
    assert (await upstream.execute(quote, TASK, 30)).payment is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("state", STATES)
async def test_the_report_of_a_failure_is_its_evidence_whatever_its_text(daemon, upstream, state, stream):
    method = "AcceptAndExecuteStream" if stream else "AcceptAndExecute"
    daemon.answers[method] = [failing("lcp_error code=7: busy at 10.0.0.1:80", written(state=state))]
    error = await fail(upstream, stream=stream)
    assert error.evidence is STATES[state]
    assert error.payment.verdict is STATES[state]
    assert error.message == "lcp_error code=7: busy at [address]"


@pytest.mark.parametrize("stream", [False, True])
async def test_fee_and_preimage_come_with_a_failure_after_the_payment(daemon, upstream, stream):
    method = "AcceptAndExecuteStream" if stream else "AcceptAndExecute"
    daemon.answers[method] = [failing("no result in time", written(**SETTLED))]
    assert (await fail(upstream, stream=stream)).payment == READ


@pytest.mark.parametrize("report", [None, b"\xff", b"", written(state=9)])
async def test_a_failure_without_a_report_that_can_be_read_is_judged_by_its_text(daemon, upstream, report):
    daemon.answers["AcceptAndExecute"] = [failing("some text", report)]
    error = await fail(upstream, stream=False)
    assert (error.evidence, error.payment, error.message) == (None, None, "some text")


async def test_a_fee_that_no_payment_has_is_left_out(daemon, upstream):
    result = {"status": pb.Result.STATUS_OK, "payment": SETTLED | {"fee_msat": 2**60}}
    daemon.answers["AcceptAndExecute"] = [pb.AcceptAndExecuteResponse(result=result)]
    quote = await upstream.request_quote(TASK, PEER, 30)
    assert (await upstream.execute(quote, TASK, 30)).payment.fee_msat is None


async def test_the_calls_that_pay_carry_the_quotes_price_and_the_limit_of_the_fee(daemon, upstream):
    quote = await upstream.request_quote(TASK, PEER, 30)
    assert not {"x-lcp-max-price-msat", "x-lcp-fee-limit-msat"} & set(daemon.metadata)
    await upstream.execute(quote, TASK, 30)
    assert daemon.metadata["x-lcp-max-price-msat"] == "5000"
    assert daemon.metadata["x-lcp-fee-limit-msat"] == "1234"


async def test_without_a_limit_of_the_fee_none_is_sent(daemon):
    upstream = LcpdUpstream(LcpdAddress(daemon.address))
    quote = await upstream.request_quote(TASK, PEER, 30)
    await upstream.execute(quote, TASK, 30)
    await upstream.close()
    assert "x-lcp-fee-limit-msat" not in daemon.metadata


async def test_lcpd_grpcd_is_not_asked_about_past_payments(daemon, upstream):
    assert (await upstream.local_info(30)).software == Software()
    with pytest.raises(UpstreamError) as caught:
        await upstream.payment(b"\x11" * 32, b"\x01" * 32, 30)
    assert (caught.value.status, caught.value.retryable) == ("UNIMPLEMENTED", False)


async def test_a_node_that_does_not_serve_what_it_names_is_an_error(daemon, upstream):
    """As where a proxy passes on the paths of lcpd-grpcd only."""
    software = {"name": "lcp-gateway", "version": "1", "features": ["payment-lookup"]}
    daemon.answers["GetLocalInfo"] = [
        pb.GetLocalInfoResponse(node_id=PEER, manifest={"protocol_version": 2}, software=software)
    ]
    with pytest.raises(UpstreamError) as caught:
        await upstream.payment(b"\x11" * 32, b"\x01" * 32, 30)
    assert (caught.value.status, caught.value.retryable) == ("UNIMPLEMENTED", False)


async def test_a_daemon_of_another_program_in_the_place_of_the_first_is_told(daemon):
    told = []
    upstream = LcpdUpstream(LcpdAddress(daemon.address), on_daemon=lambda info: told.append(info.software.name))
    ours = {"name": "lcp-gateway", "version": "1", "features": ["purchase-limits"]}
    answers = [
        pb.GetLocalInfoResponse(node_id=PEER, manifest={"protocol_version": 2}, software=software)
        for software in (None, None, ours, ours)
    ]
    daemon.answers["GetLocalInfo"] = answers
    infos = [await upstream.local_info(30) for _ in range(4)]
    await upstream.close()
    assert told == ["", "lcp-gateway"]
    assert [info.software.limits_fees for info in infos] == [False, False, True, True]
