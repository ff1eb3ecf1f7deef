import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.chunks import StreamWriter
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import (
    CHAT,
    JSON,
    SSE,
    Cancel,
    Error,
    Manifest,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
)
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.selling import Selling
from lcp_gateway.node.lcp.selling_events import (
    CancelInvoice,
    Compute,
    ComputeData,
    ComputeEnded,
    ComputeFailed,
    InvoiceFailed,
    InvoiceMade,
    InvoiceSettled,
    KeepSale,
    KeepSent,
    MakeInvoice,
    PeerBack,
    SalePhase,
    SaleTerms,
    StopCompute,
)
from lcp_gateway.node.lcp.table import read_message, write_params

V02 = Protocol.V02
NOW = 1_800_000_000
ID = b"j" * 32
REQUEST = QuoteRequest(
    protocol_version=2, job_id=ID, msg_id=b"q" * 32, expiry=NOW + 300, task_kind=CHAT, params=write_params("m")
)
AGAIN = MessageCame(REQUEST)
BODY = b'{"model":"m","messages":[1]}'
STREAMED = b'{"model":"m","messages":[1],"stream":true}'
INVOICE = InvoiceMade("lnbcrt1", b"h" * 32)
CANCEL = MessageCame(Cancel(protocol_version=2, job_id=ID, msg_id=b"c" * 32, expiry=NOW + 300))
PEER = Manifest(protocol_version=2, max_payload_bytes=400, max_stream_bytes=1_000, max_job_bytes=2_000)


def _parts(price=1_000_000, peer=PEER):
    count = iter(range(1, 250))
    return {
        "sold": SoldModel(TokenPrice(price, price), 10),
        "peer": peer,
        "own": Limits(max_stream_bytes=5_000),
        "terms": SaleTerms(),
        "inflight": lambda: 0,
        "new_id": lambda: bytes([next(count)]) * 32,
    }


def _machine(**changed):
    return Selling(V02, REQUEST, model="m", **_parts(**changed))


def _input(body=BODY):
    writer = StreamWriter(
        V02,
        protocol_version=2,
        job_id=ID,
        expiry=NOW + 300,
        stream_id=b"i" * 32,
        kind=StreamKind.INPUT,
        content_type=JSON,
        max_payload_bytes=16_384,
        new_id=lambda: b"m" * 32,
    )
    begin = writer.begin(total_len=len(body), sha256=hashlib.sha256(body).digest())
    return [MessageCame(read_message(*one)[1]) for one in (begin, *writer.chunks(body), writer.end())]


def _told(machine, *events, now=NOW):
    return [effect for event in events for effect in machine.on(now, event)]


def _sent(effects):
    return [read_message(one.message_type, one.payload)[1] for one in effects if isinstance(one, Send)]


def _running(body=BODY, **changed):
    machine = _machine(**changed)
    effects = _told(machine, *_input(body), INVOICE, InvoiceSettled())
    assert effects[-1] == Compute(CHAT, "m", body, body is STREAMED)
    return machine, effects


def _kinds(effects):
    return [type(one) for one in effects]


def test_a_job_is_sold_from_input_to_result():
    machine, effects = _running()
    assert _kinds(effects) == [MakeInvoice, KeepSale, Send, Compute]
    (quote,) = _sent(effects)
    assert isinstance(quote, QuoteResponse) and quote.price_msat == effects[0].price_msat == 17
    assert effects[0].description_hash == quote.terms_hash and effects[0].expiry_s == 295
    assert machine.phase is SalePhase.RUNNING

    effects = _told(machine, ComputeData(b"hel"), ComputeData(b"lo"), ComputeEnded(), now=NOW + 5_000)
    assert _kinds(effects) == [KeepSent, Send, Send, Send, Send]
    begin, chunk, end, result = _sent(effects)
    assert (begin.total_len, begin.content_type, chunk.data, end.total_len) == (5, JSON, b"hello", 5)
    assert (result.status, result.stream_id, result.sha256) == (Status.OK, begin.stream_id, end.sha256)
    assert machine.phase is SalePhase.DELIVERED


def test_a_streamed_result_is_kept_and_sent_as_it_comes():
    machine, _ = _running(STREAMED)

    effects = machine.on(NOW, ComputeData(b"data: 1\n\n"))
    assert _kinds(effects) == [KeepSent, Send, Send]
    begin, chunk = _sent(effects)
    assert (begin.total_len, begin.content_type, chunk.data) == (None, SSE, b"data: 1\n\n")
    effects = machine.on(NOW, ComputeEnded())
    assert _kinds(effects) == [KeepSent, Send, Send]
    assert _sent(effects)[1].content_type == SSE


def test_an_empty_result_is_a_result():
    for body in (BODY, STREAMED):
        machine, _ = _running(body)
        assert [type(one) for one in _sent(machine.on(NOW, ComputeEnded()))] == [StreamBegin, StreamEnd, Result]


@pytest.mark.parametrize(("body", "stream"), [(BODY, False), (STREAMED, True)])
def test_a_result_beyond_the_peers_limit_fails_and_the_backend_is_stopped(body, stream):
    machine, _ = _running(body)
    machine.on(NOW, ComputeData(bytes(1_000)))
    effects = machine.on(NOW, ComputeData(b"x"))

    assert _kinds(effects) == [StopCompute, KeepSent, Send]
    assert (_sent(effects)[0].status, _sent(effects)[0].message) == (
        Status.FAILED,
        "result exceeds remote stream limits",
    )
    assert _told(machine, ComputeData(b"x"), ComputeEnded()) == []
    assert stream or machine.phase is SalePhase.ENDED


def test_a_peer_that_takes_no_chunk_gets_a_failed_result():
    machine, _ = _running()
    machine.peer = own_manifest(V02, Limits(max_payload_bytes=150))
    effects = _told(machine, ComputeData(b"x"), ComputeEnded())

    assert effects[0] == StopCompute()
    assert _sent(effects)[-1].status is Status.FAILED


def test_an_invoice_that_fails_or_a_price_of_nothing_asks_for_payment():
    machine = _machine()
    (error,) = _sent(_told(machine, *_input(), InvoiceFailed("no invoice")))
    assert (error.code, error.message) == (4, "no invoice")
    assert machine.phase is SalePhase.AWAITING_INPUT
    (error,) = _sent(_told(_machine(price=0), *_input()))
    assert error.code == 4
    (error,) = _sent(_told(_machine(price=2**90), *_input()))
    assert error.code == 7


def test_a_quote_that_the_peer_cannot_read_leaves_no_invoice_open():
    machine = _machine(peer=own_manifest(V02, Limits(max_payload_bytes=100)))
    effects = _told(machine, *_input(), INVOICE)

    assert CancelInvoice(b"h" * 32) in effects
    assert _sent(effects)[0].code == 6
    assert not any(isinstance(one, KeepSale) for one in effects)


def test_a_cancel_ends_the_job_wherever_it_is():
    machine = _machine()
    assert _told(machine, *_input()[:2], CANCEL) == []
    assert [one.message for one in _sent(_told(machine, *_input()))] == [
        "job not awaiting input",
        "no input stream for job",
    ]

    machine = _machine()
    _told(machine, *_input(), CANCEL)
    assert machine.on(NOW, INVOICE) == [CancelInvoice(b"h" * 32)]

    machine = _machine()
    _told(machine, *_input(), INVOICE)
    effects = machine.on(NOW, CANCEL)
    assert _kinds(effects) == [CancelInvoice, KeepSent, Send]
    assert _sent(effects)[0].status is Status.CANCELLED
    assert machine.on(NOW, InvoiceSettled()) == []

    machine, _ = _running()
    effects = machine.on(NOW, CANCEL)
    assert _kinds(effects) == [StopCompute, KeepSent, Send]
    assert _told(machine, ComputeData(b"x"), ComputeEnded(), CANCEL) == []


def test_a_backend_that_fails_is_told_once_in_the_version_of_the_request():
    machine, _ = _running()
    effects = machine.on(NOW, ComputeFailed(ErrorCode.RATE_LIMITED, "backend unavailable: http 500: x"))
    (error,) = _sent(effects)

    assert (error.code, error.expiry) == (7, NOW + 300)
    assert _told(machine, ComputeEnded()) == []


def test_a_repeated_request_gets_the_quote_and_what_was_sent_and_nothing_runs_twice():
    machine = _machine()
    assert machine.on(NOW, AGAIN) == []
    effects = _told(machine, *_input(), INVOICE)
    quote = effects[-1]
    assert machine.on(NOW, AGAIN) == [quote]
    machine.on(NOW, InvoiceSettled())
    sent = [one for one in _told(machine, ComputeData(b"x"), ComputeEnded()) if isinstance(one, Send)]

    assert machine.on(NOW, AGAIN) == [quote, *sent]
    assert machine.on(NOW, PeerBack()) == sent
    other = MessageCame(
        QuoteRequest(protocol_version=2, job_id=ID, msg_id=ID, expiry=NOW + 999, task_kind=CHAT, params=b"")
    )
    assert _sent(machine.on(NOW, other))[0].code == 5
    assert _sent(machine.on(NOW + 301, other))[0].code == 3


def test_messages_that_are_expired_or_of_another_job_are_not_answered():
    machine = _machine()
    assert _told(machine, *_input(), now=NOW + 301) == []
    assert machine.on(NOW, MessageCame(Cancel(protocol_version=2, job_id=bytes(32), msg_id=ID, expiry=NOW))) == []


def _restored(effects, sent=()):
    (kept,) = [one for one in effects if isinstance(one, KeepSale)]
    return Selling(V02, kept.request, model=kept.model, kept=kept, sent=sent, **_parts())


def test_after_a_restart_a_paid_job_runs_and_a_finished_one_is_sent_again():
    machine, effects = _running()
    restored = _restored(effects)
    assert restored.on(NOW, InvoiceSettled()) == [Compute(CHAT, "m", BODY, stream=False)]
    assert Result in map(type, _sent(_told(restored, ComputeData(b"x"), ComputeEnded())))

    sent = [one for one in _told(machine, ComputeData(b"hello"), ComputeEnded()) if isinstance(one, Send)]
    restored = _restored(effects, sent)
    assert restored.on(NOW, InvoiceSettled()) == []
    assert restored.on(NOW, PeerBack()) == sent


def test_after_a_restart_a_stream_that_had_begun_ends_with_an_error():
    machine, effects = _running(STREAMED)
    sent = [one for one in machine.on(NOW, ComputeData(b"x")) if isinstance(one, Send)]
    restored = _restored(effects, sent)

    (error,) = _sent(restored.on(NOW, InvoiceSettled()))
    assert (error.code, error.message) == (7, "backend unavailable: interrupted by a restart")


EVENTS = [
    *_input(),
    *_input(STREAMED)[:2],
    INVOICE,
    InvoiceFailed("x"),
    InvoiceSettled(),
    ComputeData(b"abc"),
    ComputeData(bytes(600)),
    ComputeEnded(),
    ComputeFailed(ErrorCode.RATE_LIMITED, "x"),
    CANCEL,
    AGAIN,
    PeerBack(),
]
USUAL = [*_input(), INVOICE, InvoiceSettled(), ComputeData(b"abc"), ComputeEnded()]


@settings(max_examples=400)
@given(
    st.integers(0, len(USUAL)),
    st.lists(
        st.tuples(st.integers(0, len(USUAL)), st.sampled_from(EVENTS), st.sampled_from([0, 0, 0, 1, 400])), max_size=10
    ),
)
def test_whatever_happens_only_a_paid_job_runs_and_it_runs_once(cut, others):
    events = [(event, 0) for event in USUAL[:cut]]
    for at, event, later in others:
        events.insert(at, (event, later))
    machine, now, effects, settled = _machine(), NOW, [], False
    for event, later in events:
        now += later
        quoted = machine.phase is SalePhase.QUOTED
        new = machine.on(now, event)
        settled |= quoted and isinstance(event, InvoiceSettled)
        if not isinstance(event, PeerBack) and event is not AGAIN:
            _check_kept_first(new)
        effects += new

    runs = [one for one in effects if isinstance(one, Compute)]
    assert len(runs) <= 1
    assert settled or not runs
    assert sum(isinstance(one, KeepSale) for one in effects) <= 1
    ends = {one.msg_id for one in _sent(effects) if isinstance(one, Result)}
    assert len(ends) <= 1
    data = {one.seq: one.data for one in _sent(effects) if isinstance(one, StreamChunk)}
    assert sum(map(len, data.values())) <= PEER.max_stream_bytes


def _check_kept_first(effects):
    """What needs a record before it is sent has it: quotes a sale, results their messages."""
    kept = {send for one in effects if isinstance(one, KeepSent) for send in one.messages}
    for number, one in enumerate(effects):
        if not isinstance(one, Send):
            continue
        (message,) = _sent([one])
        if isinstance(message, QuoteResponse):
            assert isinstance(effects[number - 1], KeepSale)
        elif not isinstance(message, Error):
            assert one in kept
