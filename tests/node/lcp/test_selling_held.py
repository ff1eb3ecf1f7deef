"""Payments that a seller holds until its backend's first byte, and jobs that cannot be run any more."""

import hashlib
from dataclasses import replace

import pytest

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.chunks import StreamWriter
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import (
    CHAT,
    JSON,
    Cancel,
    Error,
    Manifest,
    Protocol,
    QuoteRequest,
    Result,
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
    InvoiceAccepted,
    InvoiceLost,
    InvoiceMade,
    InvoiceSettled,
    KeepSale,
    KeepSent,
    MakeInvoice,
    QuoteExpired,
    SaleOutcome,
    SalePhase,
    SaleTerms,
    SettleInvoice,
    StopCompute,
)
from lcp_gateway.node.lcp.table import read_message, write_params

V02 = Protocol.V02
NOW = 1_800_000_000
ID = b"j" * 32
BODY = b'{"model":"m","messages":[1],"stream":true}'
HASH = b"h" * 32
REQUEST = QuoteRequest(
    protocol_version=2, job_id=ID, msg_id=b"q" * 32, expiry=NOW + 300, task_kind=CHAT, params=write_params("m")
)
CANCEL = MessageCame(Cancel(protocol_version=2, job_id=ID, msg_id=b"c" * 32, expiry=NOW + 300))
FAILED = ComputeFailed(ErrorCode.RATE_LIMITED, "backend unavailable")


def _parts(max_stream_bytes=1_000):
    count = iter(range(1, 250))
    return {
        "sold": SoldModel(TokenPrice(1_000_000, 1_000_000), 10),
        "peer": Manifest(
            protocol_version=2, max_payload_bytes=400, max_stream_bytes=max_stream_bytes, max_job_bytes=9_000
        ),
        "own": Limits(),
        "terms": SaleTerms(hold=True),
        "inflight": lambda: 0,
        "new_id": lambda: bytes([next(count)]) * 32,
    }


def _input():
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
    begin = writer.begin(total_len=len(BODY), sha256=hashlib.sha256(BODY).digest())
    return [MessageCame(read_message(*one)[1]) for one in (begin, *writer.chunks(BODY), writer.end())]


def _told(machine, *events):
    return [effect for event in events for effect in machine.on(NOW, event)]


def _quoted(**changed):
    machine = Selling(V02, REQUEST, model="m", **_parts(**changed))
    effects = _told(machine, *_input(), InvoiceMade("lnbcrt1", HASH))
    assert isinstance(effects[0], MakeInvoice) and effects[0].hold
    kept = next(one for one in effects if isinstance(one, KeepSale))
    return machine, kept


def _held(**changed):
    machine, _ = _quoted(**changed)
    assert _told(machine, InvoiceAccepted()) == [Compute(CHAT, "m", BODY, stream=True)]
    # lnd may say so twice.
    assert _told(machine, InvoiceAccepted()) == []
    assert not machine.paid
    return machine


def _kinds(effects):
    return [type(one) for one in effects]


def _last(effects):
    return read_message(effects[-1].message_type, effects[-1].payload)[1]


@pytest.mark.parametrize("first", [ComputeData(b"data"), ComputeEnded()])
def test_a_held_payment_is_taken_before_the_first_byte_goes_out(first):
    machine = _held()
    assert _told(machine, ComputeData(b"")) == []
    effects = _told(machine, first)
    assert _kinds(effects)[:3] == [SettleInvoice, KeepSent, Send]
    assert SettleInvoice() not in _told(machine, ComputeData(b"more"), InvoiceSettled(), ComputeEnded())
    assert machine.paid and machine.outcome is SaleOutcome.DELIVERED


def test_a_held_payment_goes_back_before_the_peer_is_told_that_the_backend_failed():
    machine = _held()
    effects = _told(machine, FAILED)
    assert _kinds(effects) == [CancelInvoice, KeepSent, Send]
    assert isinstance(_last(effects), Error) and not machine.paid
    assert machine.outcome is SaleOutcome.FAILED


def test_a_result_that_the_peer_cannot_take_gives_the_payment_back():
    machine = _held(max_stream_bytes=3)
    effects = _told(machine, ComputeData(b"four"))
    assert _kinds(effects) == [CancelInvoice, StopCompute, KeepSent, Send]
    assert isinstance(_last(effects), Result)


def test_a_failure_after_the_first_byte_keeps_the_payment():
    machine = _held()
    effects = _told(machine, ComputeData(b"data"), FAILED)
    assert CancelInvoice(HASH) not in effects and effects.count(SettleInvoice()) == 1


def test_a_cancelled_job_gives_the_held_payment_back_and_keeps_one_that_was_taken():
    effects = _told(_held(), CANCEL)
    assert _kinds(effects) == [StopCompute, CancelInvoice, KeepSent, Send]
    machine = _held()
    _told(machine, ComputeData(b"data"))
    assert CancelInvoice(HASH) not in _told(machine, CANCEL)


def test_a_payment_that_went_back_by_itself_ends_the_job():
    machine = _held()
    assert _kinds(_told(machine, InvoiceLost())) == [StopCompute, KeepSent, Send]
    assert machine.phase is SalePhase.ENDED and not machine.paid
    paid = _held()
    assert _told(paid, InvoiceSettled(), InvoiceLost()) == []


def test_a_quote_that_expires_cancels_its_invoice_and_nothing_else_does():
    machine, _ = _quoted()
    assert _told(machine, QuoteExpired()) == [CancelInvoice(HASH)]
    assert machine.outcome is SaleOutcome.EXPIRED
    assert _told(machine, QuoteExpired(), InvoiceAccepted()) == []
    assert _told(_held(), QuoteExpired()) == []
    asked = Selling(V02, REQUEST, model="m", **_parts())
    assert _told(asked, *_input()[:2], QuoteExpired()) == []
    assert asked.outcome is SaleOutcome.EXPIRED


def test_a_restored_job_without_its_request_is_not_run():
    _, kept = _quoted()
    kept = replace(kept, body=b"")
    machine = Selling(V02, kept.request, model=kept.model, kept=kept, **_parts())
    effects = _told(machine, InvoiceAccepted())
    assert _kinds(effects) == [CancelInvoice, KeepSent, Send]
    machine = Selling(V02, kept.request, model=kept.model, kept=kept, **_parts())
    assert isinstance(_last(_told(machine, InvoiceSettled())), Error) and machine.paid


def test_a_delivered_job_of_which_only_the_end_was_kept_says_so_when_it_is_asked_again():
    machine = _held()
    effects = _told(machine, InvoiceSettled(), ComputeData(b"data"), ComputeEnded())
    _, kept = _quoted()
    kept = replace(kept, body=b"")
    restored = Selling(V02, kept.request, model=kept.model, kept=kept, sent=effects[-1:], **_parts())
    assert restored.outcome is SaleOutcome.DELIVERED
    again = _told(restored, MessageCame(replace(REQUEST, msg_id=b"r" * 32)))
    assert isinstance(_last(again), Error)


def test_late_copies_of_a_request_do_not_end_a_job_that_was_restored():
    _, kept = _quoted()
    restored = Selling(V02, kept.request, model=kept.model, kept=kept, **_parts())
    assert _told(restored, *_input()) == []
    assert _kinds(_told(restored, InvoiceSettled())) == [Compute]
