"""The requester's half of the recorded dialogues: each job that a real daemon bought, bought again by the machine.

The machine gets what the daemon got (messages, payments, calls of its caller), with its ids and its clock, and has to send the
same bytes and pay the same invoices. Where it decides otherwise on purpose, ``OTHERWISE`` says so.
"""

import itertools
from collections import defaultdict

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.lcp.buying import Buying, Phase
from lcp_gateway.node.lcp.buying_events import (
    Accept,
    Ask,
    CancelJob,
    Ended,
    Order,
    Outcome,
    Pay,
    PaymentFailed,
    PaymentSettled,
    PeerTimeouts,
    Quoted,
)
from lcp_gateway.node.lcp.effects import MessageCame, Send, TimerFired
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import (
    Cancel,
    Error,
    JobMessage,
    Manifest,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    StreamBegin,
    StreamChunk,
    StreamEnd,
)
from lcp_gateway.node.lcp.table import read_message
from tests.support import lcp_vectors
from tests.support.cases import each_case

NOT_PAID_OUTCOMES = {Outcome.NOT_PAYABLE, Outcome.NOT_PAID}

OTHERWISE = {
    "cancel before payment, then accept anyway": (Outcome.CANCELLED, "a cancelled job is not paid"),
    "hand provider: error between quote and accept": (Outcome.ERROR, "a job that its seller gave up is not paid"),
    "hand provider: result wrong length at begin": (Outcome.ERROR, "the head's length is checked"),
    "hand provider: result wrong hash at begin": (Outcome.ERROR, "the head's hash is checked"),
    "hand provider: result other stream id in result": (Outcome.ERROR, "the result's stream is checked"),
}
ASKED_AGAIN = {"hand provider: result chunks out of order"}
"""A stream that lacks something is asked for again, and judged when nothing more comes."""

NOT_PAID_HERE = {"cancel before payment, then accept anyway", "hand provider: error between quote and accept"}
DEAF = "lnd of the requester ends its streams (as on a clean restart)"


def _read(recorded):
    return read_message(recorded["type"], bytes.fromhex(recorded["hex"]))[1]


class Jobs:
    """Sorts a dialogue's records by the jobs that its requester asked for."""

    def __init__(self):
        self.records = defaultdict(list)
        self._by_invoice, self._by_hash = {}, {}

    def add(self, recorded):
        if "hex" in recorded:
            job = self._of_message(recorded)
        elif recorded.get("lnd") == "requester":
            request = recorded["request"]
            job = self._by_invoice.get(request.get("pay_req") or request.get("payment_request"))
        else:
            job = self._by_hash.get(recorded.get("settled"))
        if job is not None:
            self.records[job].append(recorded)

    def _of_message(self, recorded):
        message = _read(recorded)
        asked = isinstance(message, QuoteRequest) and recorded["frm"] == "requester"
        if not isinstance(message, JobMessage) or not (asked or message.job_id in self.records):
            return None
        if isinstance(message, QuoteResponse):
            self._by_invoice[message.payment_request] = message.job_id
            self._by_hash[bolt11.decode(message.payment_request).payment_hash.hex()] = message.job_id
        return message.job_id


def _bought(protocol):
    """Yield (dialogue, what happened to one job) for each job that the recorded requester asked for."""
    for dialogue in lcp_vectors.dialogues(protocol)["dialogues"]:
        jobs = Jobs()
        for recorded in dialogue["messages"]:
            jobs.add(recorded)
        for happened in jobs.records.values():
            yield dialogue, happened


CASES = [
    pytest.param(protocol, dialogue, happened, id=f"0.{protocol.value} {dialogue['name']} ({number})")
    for protocol in Protocol
    for number, (dialogue, happened) in enumerate(_bought(protocol))
]


class Replay:
    """A machine that lives through what one recorded job did."""

    def __init__(self, protocol, dialogue, happened):
        self.dialogue, self.happened = dialogue, happened
        self.effects = []
        sent = [_read(one) for one in happened if one.get("frm") == "requester"]
        request = next(one for one in sent if isinstance(one, QuoteRequest))
        begin = next(one for one in sent if isinstance(one, StreamBegin))
        end = next(one for one in sent if isinstance(one, StreamEnd))
        cancels = [one.msg_id for one in sent if isinstance(one, Cancel)]
        ids = iter([request.job_id, request.msg_id, begin.stream_id, begin.msg_id, end.msg_id, *cancels])
        spare = (bytes([number]) * 32 for number in itertools.count(1))
        self.started = request.expiry - 300 - happened[0]["t"]
        self.seller = lcp_vectors.dialogues(protocol)[happened[0]["to"]]
        self.machine = Buying(
            protocol,
            Order(
                task_kind=request.task_kind,
                params=request.params,
                request=b"".join(one.data for one in sent if isinstance(one, StreamChunk)),
                content_type=begin.content_type,
                params_content_type=request.params_content_type,
            ),
            peer_id=self.seller,
            manifest=Manifest(
                protocol_version=protocol.value,
                max_payload_bytes=16_384,
                max_stream_bytes=4 * 2**20,
                max_job_bytes=8 * 2**20,
            ),
            own=Limits(),
            timeouts=PeerTimeouts(),
            new_id=lambda: next(ids, None) or next(spare),
        )

    def on(self, now, event):
        self.effects += self.machine.on(now, event)

    def run(self):
        for recorded in self.happened:
            self._live(self.started + recorded["t"], recorded)
        if self.dialogue["outcome"].get("details") == "quote expired":
            # The daemon refuses before it looks at the invoice: no call tells when.
            self._accept(lambda quote: quote.quote_expiry)
        self.seen = list(self.effects)
        if "DEADLINE" in self.dialogue["outcome"].get("grpc", "") or self.machine.phase is Phase.RECEIVING:
            self.on(self.started + 100_000, TimerFired())

    def _live(self, now, recorded):
        if "settled" in recorded:
            self.on(now, PaymentSettled())
        elif "lnd" in recorded:
            self._call(now, recorded["call"])
        elif recorded["frm"] != "requester":
            if self.dialogue["name"] != DEAF:
                self.on(now, MessageCame(_read(recorded)))
        elif recorded["name"] in {"quote_request", "call"}:
            self.on(now, Ask())
        elif recorded["name"] == "cancel":
            cancel = _read(recorded)
            self.on(cancel.expiry - 300, CancelJob(cancel.reason or ""))

    def _call(self, now, call):
        if call == "DecodePayReq":
            self._accept(lambda _: now)
        elif call == "SendPaymentV2" and "payment failed" in self.dialogue["outcome"].get("details", ""):
            self.on(now, PaymentFailed("FAILURE_REASON_NO_ROUTE"))

    def _accept(self, when):
        quote = next(one.quote for one in self.effects if isinstance(one, Quoted))
        self.on(when(quote), Accept(bolt11.decode(quote.payment_request), max_price_msat=10_000, network="bcrt"))


def _told(dialogue, happened):
    """Return the outcome that the daemon's caller saw, and the number of an error."""
    outcome = dialogue["outcome"]
    details = outcome.get("details", "")
    if outcome["grpc"] == "OK":
        results = [_read(one) for one in happened if one.get("name") in {"result", "complete"}]
        return (Outcome.DELIVERED, Outcome.FAILED, Outcome.CANCELLED)[results[-1].status], None
    if details.startswith("lcp_error"):
        return Outcome.ERROR, int(details.split("=")[1].split(":")[0])
    if outcome["grpc"] in {"DEADLINE_EXCEEDED", "CANCELLED"}:
        return Outcome.SILENT, None
    if details.startswith("payment failed"):
        return Outcome.NOT_PAID, None
    return (Outcome.EXPIRED if "quote expired" in details else Outcome.NOT_PAYABLE), None


@each_case("protocol, dialogue, happened", CASES)
def test_a_job_is_bought_again_byte_for_byte(protocol, dialogue, happened):
    replay = Replay(protocol, dialogue, happened)
    replay.run()

    name = dialogue["name"].replace("provider: response", "provider: result").replace("in response", "in result")
    ended = [one for one in replay.effects if isinstance(one, Ended)]
    outcome, number = _told(dialogue, happened)
    outcome, number = (OTHERWISE[name][0], None) if name in OTHERWISE else (outcome, number)
    if not ended:
        assert name == DEAF
        return
    assert [one.outcome for one in ended] == [outcome]
    if number is not None:
        assert ended[0].number == number

    # The daemon answers each end of a stream with an error 10, which is noise.
    expected = [
        (one["type"], bytes.fromhex(one["hex"]))
        for one in happened
        if one.get("frm") == "requester" and not isinstance(_read(one), Error)
    ]
    sent = [(one.message_type, one.payload) for one in replay.seen if isinstance(one, Send)]
    if outcome in NOT_PAID_OUTCOMES:
        # The seller is told that nothing will be paid.
        assert isinstance(read_message(*sent[-1])[1], Cancel)
        sent.pop()
    if name in ASKED_AGAIN:
        assert isinstance(read_message(*sent[-1])[1], QuoteRequest)
        sent.pop()
    assert sent == expected

    paid = [one.payment_request for one in replay.effects if isinstance(one, Pay)]
    theirs = [one["request"]["payment_request"] for one in happened if one.get("call") == "SendPaymentV2"]
    assert paid == ([] if name in NOT_PAID_HERE else theirs)
    assert ended[0].paid == any("settled" in one for one in happened) or name in NOT_PAID_HERE


def test_there_are_as_many_jobs_as_were_recorded():
    assert len(CASES) > 80
