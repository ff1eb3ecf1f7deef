import hashlib
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import Terms, hash_terms
from lcp_gateway.node.lcp.buying import Buying, Phase
from lcp_gateway.node.lcp.buying_events import (
    Accept,
    Ask,
    CancelJob,
    Ended,
    KeepPurchase,
    Order,
    Outcome,
    Pay,
    PaymentFailed,
    PaymentSettled,
    PeerTimeouts,
    Quoted,
    ResultData,
    ResultHead,
)
from lcp_gateway.node.lcp.effects import MessageCame, Send, SetTimer, TimerFired
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import (
    CHAT,
    JSON,
    Cancel,
    Error,
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
from lcp_gateway.node.lcp.table import chunk_msg_id, hash_params, read_message, write_params

V02 = Protocol.V02
SELLER = "02" + "ab" * 32
NOW = 1_800_000_000
ORDER = Order(task_kind=CHAT, params=write_params("m"), request=b'{"model":"m","messages":[1]}')
JOB_ID = b"\x01" * 32
RESULT = b"hello world"
OTHER = {"protocol_version": 2, "job_id": JOB_ID, "msg_id": b"o" * 32, "expiry": NOW + 300}


@dataclass(frozen=True)
class Invoice:
    description_hash: bytes
    network: str = "bcrt"
    payee: str = SELLER
    amount_msat: int | None = 1000
    payment_hash: bytes = b"h" * 32
    expires_at: int = NOW + 295


def _ids():
    count = iter(range(1, 200))
    return lambda: bytes([next(count)]) * 32


def _machine(order=ORDER, manifest=None):
    return Buying(
        V02,
        order,
        peer_id=SELLER,
        manifest=manifest or own_manifest(V02, Limits(), ["m"]),
        own=Limits(max_stream_bytes=100),
        timeouts=PeerTimeouts(quote_s=30, first_byte_s=300, idle_s=60),
        new_id=_ids(),
    )


def _quote(**changed):
    price, expiry = changed.get("price_msat", 1000), changed.get("quote_expiry", NOW + 300)
    terms = Terms(
        protocol_version=2,
        job_id=JOB_ID,
        price_msat=price,
        quote_expiry=expiry,
        task_kind=ORDER.task_kind,
        request_sha256=hashlib.sha256(ORDER.request).digest(),
        params_sha256=hash_params(V02, ORDER.params),
        request_bytes=len(ORDER.request),
        content_type=JSON,
        content_encoding="identity",
    )
    fields = {
        "price_msat": price,
        "quote_expiry": expiry,
        "terms_hash": hash_terms(V02, terms),
        "payment_request": "lnbcrt1",
        **changed,
    }
    return QuoteResponse(**OTHER, **fields)


def _accept(**changed):
    limits = {name: changed.pop(name) for name in ("max_price_msat", "network_wanted") if name in changed}
    return Accept(
        Invoice(**{"description_hash": _quote().terms_hash, **changed}),
        max_price_msat=limits.get("max_price_msat", 1000),
        network=limits.get("network_wanted", "bcrt"),
    )


def _stream(stream_id=b"s" * 32, data=RESULT):
    chunks = (data[:5], data[5:])
    return [
        StreamBegin(
            **OTHER, stream_id=stream_id, stream_kind=StreamKind.RESULT, content_type=JSON, content_encoding="identity"
        ),
        *(
            StreamChunk(**{**OTHER, "msg_id": chunk_msg_id(stream_id, seq)}, stream_id=stream_id, seq=seq, data=piece)
            for seq, piece in enumerate(chunks)
        ),
        StreamEnd(**OTHER, stream_id=stream_id, total_len=len(data), sha256=hashlib.sha256(data).digest()),
        Result(
            **OTHER,
            status=Status.OK,
            stream_id=stream_id,
            sha256=hashlib.sha256(data).digest(),
            total_len=len(data),
            content_type=JSON,
            content_encoding="identity",
        ),
    ]


def _error(code=7, message="busy"):
    return MessageCame(Error(**OTHER, code=code, message=message))


def _told(machine, now, *events):
    return [effect for event in events for effect in machine.on(now, event)]


def _paying():
    machine = _machine()
    effects = _told(machine, NOW, Ask(), MessageCame(_quote()), _accept())
    assert machine.phase is Phase.PAYING
    return machine, effects


def _paid():
    machine, effects = _paying()
    return machine, effects + _told(machine, NOW, PaymentSettled())


def _ended(effects):
    return [one for one in effects if isinstance(one, Ended)]


def _sent(effects):
    return [read_message(one.message_type, one.payload)[1] for one in effects if isinstance(one, Send)]


def test_a_job_is_bought_from_request_to_result():
    machine, effects = _paid()
    effects += _told(machine, NOW, *map(MessageCame, _stream()))

    kinds = [type(one).__name__ for one in effects if not isinstance(one, SetTimer)]
    assert kinds == ["Send"] * 4 + ["Quoted", "KeepPurchase", "Pay", "ResultHead", "ResultData", "ResultData", "Ended"]
    assert _ended(effects) == [Ended(Outcome.DELIVERED, paid=True)]
    assert KeepPurchase(_quote(), b"h" * 32) in effects and Pay("lnbcrt1", 1000) in effects
    assert machine.on(NOW, PaymentSettled()) == [] == machine.on(NOW, _accept())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"description_hash": b"x" * 32}, "description_hash"),
        ({"description_hash": None}, "description_hash"),
        ({"payee": "03" + "ab" * 32}, "destination"),
        ({"amount_msat": 1001}, "amount"),
        ({"amount_msat": None}, "amount"),
        ({"expires_at": NOW + 306}, "expiry exceeds"),
        ({"expires_at": NOW}, "invoice expired"),
        ({"network": "bc"}, "network does not match bcrt"),
        ({"max_price_msat": 999}, "limit of 999"),
    ],
)
def test_an_invoice_that_is_not_the_quotes_is_not_paid_and_the_seller_is_told(changed, words):
    machine = _machine()
    _told(machine, NOW, Ask(), MessageCame(_quote()))
    effects = machine.on(NOW, _accept(**changed))

    assert isinstance(_sent(effects)[0], Cancel)
    (ended,) = _ended(effects)
    assert ended.outcome is Outcome.NOT_PAYABLE and words in ended.message and not ended.paid
    assert machine.on(NOW, _accept()) == []


def test_a_free_quote_and_one_for_other_terms_are_not_payable():
    machine = _machine()
    _told(machine, NOW, Ask(), MessageCame(_quote(price_msat=0)))
    assert _ended(machine.on(NOW, _accept(description_hash=_quote(price_msat=0).terms_hash, amount_msat=0)))[
        0
    ].message == ("price_msat must be > 0")
    machine = _machine()
    effects = _told(machine, NOW, Ask(), MessageCame(replace(_quote(), price_msat=999)))
    assert _ended(effects)[0].outcome is Outcome.NOT_PAYABLE
    assert not any(isinstance(one, Quoted) for one in effects)


def test_a_quote_is_accepted_until_its_expiry():
    machine = _machine()
    _told(machine, NOW, Ask(), MessageCame(_quote()))
    effects = machine.on(NOW + 300, _accept(expires_at=NOW + 305))

    assert _ended(effects) == [Ended(Outcome.EXPIRED, paid=False, message="quote expired")]


@pytest.mark.parametrize(
    "order", [replace(ORDER, request=bytes(10)), replace(ORDER, task_kind=""), replace(ORDER, params=b"x")]
)
def test_a_request_that_cannot_be_sent_is_not_begun(order):
    manifest = replace(own_manifest(V02, Limits(), ["m"]), max_stream_bytes=9)
    effects = _machine(order, manifest).on(NOW, Ask())

    assert [type(one) for one in effects] == [Ended]
    assert effects[0].outcome is Outcome.NOT_ASKED


@pytest.mark.parametrize("most", [10, 116, 195])
def test_a_seller_whose_limit_fits_no_request_gets_nothing_of_it(most):
    manifest = replace(own_manifest(V02, Limits(), ["m"]), max_payload_bytes=most)

    assert [type(one) for one in _machine(manifest=manifest).on(NOW, Ask())] == [Ended]


def test_silence_ends_each_phase():
    machine = _machine()
    machine.on(NOW, Ask())
    assert machine.on(NOW + 29, TimerFired()) == []
    effects = machine.on(NOW + 30, TimerFired())
    assert isinstance(_sent(effects)[0], Cancel)
    assert _ended(effects)[0].outcome is Outcome.SILENT and not _ended(effects)[0].paid

    machine = _machine()
    _told(machine, NOW, Ask(), MessageCame(_quote()))
    assert _ended(machine.on(NOW + 300, TimerFired()))[0].outcome is Outcome.EXPIRED

    machine, _ = _paying()
    assert machine.on(NOW + 10**6, TimerFired()) == []

    machine, _ = _paid()
    machine.on(NOW + 299, MessageCame(_stream()[0]))
    assert machine.on(NOW + 358, TimerFired()) == []
    effects = machine.on(NOW + 359, TimerFired())
    assert not _sent(effects), "the quote has expired: nothing can be asked again"
    assert _ended(effects) == [Ended(Outcome.SILENT, paid=True, message="no result in time")]


def test_what_comes_before_the_payment_is_known_waits_for_it():
    machine, _ = _paying()
    effects = _told(machine, NOW, *map(MessageCame, _stream()))
    assert [type(one) for one in effects] == [ResultHead, ResultData, ResultData]
    assert machine.on(NOW, PaymentSettled()) == [Ended(Outcome.DELIVERED, paid=True)]

    machine, _ = _paying()
    assert _told(machine, NOW, _error(), *map(MessageCame, _stream())) == []
    (ended,) = machine.on(NOW, PaymentSettled())
    assert (ended.outcome, ended.paid, ended.code) == (Outcome.ERROR, True, ErrorCode.RATE_LIMITED)

    machine, _ = _paying()
    machine.on(NOW, _error())
    effects = machine.on(NOW, PaymentFailed("FAILURE_REASON_NO_ROUTE"))
    assert isinstance(_sent(effects)[0], Cancel)
    assert _ended(effects) == [Ended(Outcome.NOT_PAID, paid=False, message="FAILURE_REASON_NO_ROUTE")]


def test_an_interrupted_stream_goes_on_where_it_was_and_another_one_only_before_its_first_byte():
    machine, _ = _paid()
    begin, first, *_ = _stream()
    _told(machine, NOW, MessageCame(begin), MessageCame(first))
    effects = _told(machine, NOW, *map(MessageCame, _stream(b"t" * 32)[:-1]))
    assert effects and not any(isinstance(one, ResultData | Ended) for one in effects)
    effects = _told(machine, NOW, *map(MessageCame, _stream()))
    assert [one.data for one in effects if isinstance(one, ResultData)] == [RESULT[5:]]
    assert _ended(effects)[0].outcome is Outcome.DELIVERED

    machine, _ = _paid()
    machine.on(NOW, MessageCame(begin))
    effects = _told(machine, NOW, *map(MessageCame, _stream(b"t" * 32)))
    assert not any(isinstance(one, ResultHead) for one in effects)
    assert _ended(effects)[0].outcome is Outcome.DELIVERED


def test_a_paid_result_that_lacks_something_is_asked_for_again_once():
    begin, first, second, end, result = _stream()
    machine, _ = _paid()
    effects = _told(machine, NOW, *map(MessageCame, (begin, second)))
    (request,) = _sent(effects)
    assert isinstance(request, QuoteRequest) and request.job_id == JOB_ID
    effects = _told(machine, NOW, *map(MessageCame, (_quote(), *_stream())))
    assert not _sent(effects)
    assert _ended(effects) == [Ended(Outcome.DELIVERED, paid=True)]

    machine, _ = _paid()
    effects = _told(machine, NOW, *map(MessageCame, (begin, first, end, result)))
    assert len(_sent(effects)) == 1 and not _ended(effects)
    assert machine.on(NOW + 59, TimerFired()) == []
    (ended,) = machine.on(NOW + 60, TimerFired())
    assert (ended.outcome, ended.message, ended.number) == (Outcome.ERROR, "stream total_len mismatch", 12)

    machine, _ = _paid()
    _told(machine, NOW, MessageCame(begin))
    effects = machine.on(NOW + 60, TimerFired())
    assert len(_sent(effects)) == 1 and not _ended(effects)
    assert _ended(machine.on(NOW + 120, TimerFired()))[0].outcome is Outcome.SILENT

    machine, _ = _paid()
    _told(machine, NOW, MessageCame(begin), CancelJob())
    assert not _sent(machine.on(NOW + 60, TimerFired()))


def test_a_cancel_before_the_payment_ends_the_job_and_a_later_one_leaves_the_outcome_to_the_seller():
    machine = _machine()
    effects = _told(machine, NOW, Ask(), CancelJob(" why "))
    assert _sent(effects)[-1].reason == "why"
    assert _ended(effects)[0].outcome is Outcome.CANCELLED
    assert machine.on(NOW, MessageCame(_quote())) == []

    machine, _ = _paid()
    effects = machine.on(NOW, CancelJob())
    assert [one.reason for one in _sent(effects)] == [None] and not _ended(effects)
    effects = machine.on(NOW, MessageCame(Result(**OTHER, status=Status.CANCELLED, message="cancelled")))
    assert effects == [Ended(Outcome.CANCELLED, paid=True, message="cancelled")]


def test_a_restored_purchase_asks_for_its_result_once_more_and_pays_nothing():
    kept = KeepPurchase(_quote(), b"h" * 32)
    machine = Buying(
        V02,
        ORDER,
        kept=kept,
        peer_id=SELLER,
        manifest=own_manifest(V02, Limits(), ["m"]),
        own=Limits(),
        timeouts=PeerTimeouts(),
        new_id=lambda: b"n" * 32,
    )

    assert machine.job_id == JOB_ID
    assert _told(machine, NOW + 100, Ask(), _accept()) == []
    effects = machine.on(NOW + 100, PaymentSettled())
    (request,) = _sent(effects)
    assert isinstance(request, QuoteRequest)
    assert (request.job_id, request.msg_id, request.params) == (JOB_ID, b"n" * 32, ORDER.params)
    assert _told(machine, NOW + 100, MessageCame(_quote())) == []
    effects = _told(machine, NOW + 100, *map(MessageCame, _stream()))
    assert _ended(effects) == [Ended(Outcome.DELIVERED, paid=True)]


def test_an_error_says_whether_the_seller_misses_our_manifest():
    for code, message, missed in (
        (10, "manifest not exchanged", True),
        (10, "job is gone", False),
        (7, "manifest", False),
    ):
        machine = _machine()
        effects = _told(machine, NOW, Ask(), _error(code, message))
        assert _ended(effects)[0].manifest_missed is missed


EVENTS = [
    Ask(),
    MessageCame(_quote()),
    MessageCame(replace(_quote(), price_msat=5)),
    MessageCame(replace(_quote(), job_id=b"z" * 32)),
    _accept(),
    _accept(payee="03" + "cd" * 32),
    PaymentSettled(),
    PaymentFailed("no"),
    CancelJob("x"),
    TimerFired(),
    _error(),
    MessageCame(Result(**OTHER, status=Status.FAILED)),
    *map(MessageCame, _stream()),
    *map(MessageCame, _stream(b"t" * 32)[:2]),
]
USUAL = [EVENTS[0], EVENTS[1], EVENTS[4], EVENTS[6], *EVENTS[12:17]]


@settings(max_examples=400)
@given(
    st.integers(0, len(USUAL)),
    st.lists(
        st.tuples(st.integers(0, len(USUAL)), st.sampled_from(EVENTS), st.sampled_from([0, 0, 0, 1, 70, 400])),
        max_size=12,
    ),
)
def test_whatever_happens_a_job_is_paid_once_at_most_and_its_end_tells_the_truth(cut, others):
    events = [(event, 0) for event in USUAL[:cut]]
    for at, event, later in others:
        events.insert(at, (event, later))
    machine, now, effects, settled = _machine(), NOW, [], False
    for event, later in events:
        now += later
        paying = machine.phase is Phase.PAYING
        effects += machine.on(now, event)
        settled |= paying and isinstance(event, PaymentSettled)

    pays = [number for number, one in enumerate(effects) if isinstance(one, Pay)]
    assert len(pays) <= 1
    for number in pays:
        assert isinstance(effects[number - 1], KeepPurchase)
    ended = _ended(effects)
    assert len(ended) <= 1
    assert (machine.phase is Phase.ENDED) == bool(ended)
    data = b"".join(one.data for one in effects if isinstance(one, ResultData))
    assert RESULT.startswith(data)
    assert not data or pays
    if ended:
        assert ended[0].paid == settled
        assert effects[-1] is ended[0]
        if ended[0].outcome is Outcome.DELIVERED:
            assert data == RESULT and ended[0].paid
