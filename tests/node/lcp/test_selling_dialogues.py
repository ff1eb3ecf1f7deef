"""The provider's half of the recorded dialogues: each job whose request a real daemon took, sold again by the machine.

The machine gets what the daemon got (messages, invoices, settlements, the backend's bytes), with its ids and its clock, and has
to ask for the same invoices and send the same bytes. Where it decides otherwise on purpose, ``OTHERWISE`` says so.
"""

import itertools
from dataclasses import replace

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.error_codes import read_code
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.judging import RequestRefused, SoldModel, judge_request
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import (
    Error,
    JobMessage,
    Manifest,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamBegin,
    StreamChunk,
    StreamEnd,
)
from lcp_gateway.node.lcp.pricing import Surge, TokenPrice, price_msat
from lcp_gateway.node.lcp.selling import Selling
from lcp_gateway.node.lcp.selling_events import (
    ComputeData,
    ComputeEnded,
    ComputeFailed,
    InvoiceMade,
    InvoiceSettled,
    MakeInvoice,
    SaleTerms,
)
from lcp_gateway.node.lcp.table import read_message, write_params
from tests.support import lcp_vectors
from tests.support.cases import each_case

SOLD = SoldModel(TokenPrice(1_000_000, 2_000_000), 200)
MODELS = {"model-a": SOLD, "model-b": SOLD}
SURGE = Surge(1, 500)

CANCELLED = "a cancelled job is answered, its invoice cancelled"
OTHERWISE = {
    "cancel before payment, then accept anyway": CANCELLED,
    "cancel while executing": CANCELLED,
    "hand requester: cancel after the quote, request again, pay": CANCELLED,
    "hand requester: request repeated after the job is done": "the same result is sent again, nothing runs twice",
    "hand requester: its manifest lists tasks, and asks for another": "the requester's own list is not looked at",
}


def _read(recorded):
    return read_message(recorded["type"], bytes.fromhex(recorded["hex"]))[1]


class Record:
    """What was recorded of one job, from all dialogues that it took part in."""

    def __init__(self, protocol, request, peer):
        self.protocol, self.request, self.peer = protocol, request, peer
        self.names, self.steps, self.invoices = [], [], []

    @property
    def sent(self):
        return [step for kind, step in self.steps if kind == "sent"]

    @property
    def quote(self):
        return next((_read(one) for one in self.sent if isinstance(_read(one), QuoteResponse)), None)


class Sorter:
    """Sorts a file's records by the jobs whose requests would be taken."""

    def __init__(self, protocol):
        self.protocol, self.jobs = protocol, {}
        self._manifests, self._by_hash, self._invoices = {}, {}, {}

    def add(self, name, recorded):
        if "settled" in recorded:
            self._step(self._by_hash.get(recorded["settled"]), name, "settled", recorded)
        elif (recorded.get("lnd"), recorded.get("call")) == ("provider", "AddInvoice"):
            self._invoices[recorded["request"]["description_hash"]] = recorded["request"]
        elif "hex" in recorded and "provider" in {recorded["frm"], recorded["to"]}:
            self._message(name, recorded, _read(recorded))

    def _message(self, name, recorded, message):
        peer = recorded["frm"] if recorded["to"] == "provider" else recorded["to"]
        if isinstance(message, Manifest):
            if recorded["to"] == "provider":
                self._manifests[peer] = message
            return
        job = message.job_id
        if name == "hand requester: request repeated, other params" and job not in self.jobs:
            # The first request, for the other model, is not in the recording.
            self._request(replace(message, params=write_params("model-a")), peer)
        if isinstance(message, QuoteRequest) and recorded["to"] == "provider" and job not in self.jobs:
            self._request(message, peer)
            self._step(job, name, "", recorded)
        elif recorded["to"] == "provider":
            self._step(job, name, "came", recorded)
        elif recorded["frm"] == "provider":
            self._step(job, name, "sent", recorded)
            if isinstance(message, QuoteResponse) and job in self.jobs:
                self._by_hash[bolt11.decode(message.payment_request).payment_hash.hex()] = job
                self.jobs[job].invoices.append(self._invoices[message.terms_hash.hex()])

    def _request(self, message, peer):
        try:
            judge_request(self.protocol, message, MODELS)
        except RequestRefused:
            return
        if peer in self._manifests:
            self.jobs[message.job_id] = Record(self.protocol, message, self._manifests[peer])

    def _step(self, job, name, kind, recorded):
        if job in self.jobs:
            record = self.jobs[job]
            if name not in record.names:
                record.names.append(name)
            if kind:
                record.steps.append((kind, recorded))


def _sold(protocol):
    sorter = Sorter(protocol)
    for dialogue in lcp_vectors.dialogues(protocol)["dialogues"]:
        # The provider forgot its manifests when it restarted.
        if dialogue["name"] == "a job after the provider's restart":
            continue
        for recorded in dialogue["messages"]:
            sorter.add(dialogue["name"], recorded)
    return sorter.jobs.values()


CASES = [
    pytest.param(record, id=f"0.{protocol.value} {record.names[0]} ({number})")
    for protocol in Protocol
    for number, record in enumerate(_sold(protocol))
]


def _ids(record):
    seen = set()
    for one in map(_read, record.sent):
        if isinstance(one, Error) and one.message.endswith("exceeds remote max_payload_bytes"):
            # That of the quote, which never went out.
            yield bytes(32)
        if isinstance(one, StreamBegin):
            yield one.stream_id
        if not isinstance(one, StreamChunk) and one.msg_id not in seen:
            seen.add(one.msg_id)
            yield one.msg_id
    for number in itertools.count(1):
        yield bytes([number]) * 32


class Replay:
    """A machine that lives through what one recorded job did."""

    def __init__(self, record):
        self.record, self.effects = record, []
        ids = _ids(record)
        short = bool(record.invoices) and record.invoices[0]["expiry"] == 3
        self.ttl_s = 3 if short else 300
        self.now = record.request.expiry - 300
        self.whole, self.streaming = None, False
        self.machine = Selling(
            record.protocol,
            record.request,
            model="model-a",
            sold=SOLD,
            peer=record.peer,
            own=Limits(),
            terms=SaleTerms(ttl_s=self.ttl_s, surge=SURGE),
            inflight=self._inflight,
            new_id=lambda: next(ids),
        )

    def _inflight(self):
        """Find how many jobs were in flight when this one was priced: the recording does not say."""
        quote, body = self.record.quote, bytes(self.machine._body)
        output = 20 if b"max_completion_tokens" in body else 200
        for inflight in range(12):
            price = price_msat(
                SOLD.price, request_bytes=len(body), output_tokens=output, inflight=inflight, surge=SURGE
            )
            if quote is None or quote.price_msat == price:
                return inflight
        raise AssertionError("no such price")

    def on(self, event):
        self.effects += self.machine.on(self.now, event)

    def run(self):
        for kind, recorded in self.record.steps:
            if kind == "settled":
                self.on(InvoiceSettled())
            elif kind == "came":
                self._came(_read(recorded))
            else:
                self._sent(_read(recorded))

    def _came(self, message):
        quote = self.record.quote
        if isinstance(message, StreamEnd) and quote is not None:
            self.now = quote.quote_expiry - self.ttl_s
        if not isinstance(message, Error):
            self.on(MessageCame(message))

    def _sent(self, message):
        match message:
            case QuoteResponse() if self.machine.phase == "priced":
                payment_hash = bolt11.decode(message.payment_request).payment_hash
                self.on(InvoiceMade(message.payment_request, payment_hash))
            case StreamBegin():
                self.now = message.expiry - self.ttl_s
                self.streaming = message.total_len is None
                self.whole = b""
            case StreamChunk() if self.streaming:
                self.on(ComputeData(message.data))
            case StreamChunk():
                self.whole += message.data
            case StreamEnd():
                self.on(ComputeData(self.whole))
                self.on(ComputeEnded())
            case Error() if self.machine.phase == "priced":
                self.on(InvoiceMade("lnbcrt1" + "x" * 300, bytes(32)))
            case Error() if self.machine.phase == "running":
                self.on(ComputeFailed(read_code(self.record.protocol, message.code), message.message))
            case Result(status=Status.FAILED):
                self.now = message.expiry - self.ttl_s
                self.on(ComputeData(bytes(166)))


def _compared(messages):
    """Return messages as they are compared: bytes, but a result's pieces, which are cut otherwise, as one."""
    found, data = [], b""
    for number, payload in messages:
        _, message = read_message(number, payload)
        if isinstance(message, StreamChunk):
            data += message.data
        else:
            if data:
                found.append(data)
            found.append((number, payload))
            data = b""
    return [*found, data] if data else found


@each_case("record", CASES)
def test_a_job_is_sold_again_byte_for_byte(record):
    replay = Replay(record)
    replay.run()

    asked = [one for one in replay.effects if isinstance(one, MakeInvoice)]
    assert [
        (one.description_hash.hex(), one.price_msat, one.expiry_s) for one in asked[: len(record.invoices)]
    ] == list(dict.fromkeys((one["description_hash"], one["value_msat"], one["expiry"]) for one in record.invoices))
    sent = _compared((one.message_type, one.payload) for one in replay.effects if isinstance(one, Send))
    theirs = _compared((one["type"], bytes.fromhex(one["hex"])) for one in record.sent)
    different = [OTHERWISE[name] for name in record.names if name in OTHERWISE]
    if not different:
        assert sent == theirs
    elif different == [CANCELLED]:
        requests = 1 + sum(kind == "came" and one["name"] in {"quote_request", "call"} for kind, one in record.steps)
        assert sent == [theirs[0], sent[1]] * requests
        assert read_message(*sent[1])[1].status is Status.CANCELLED
    elif "nothing runs twice" in different[0]:
        assert sent == theirs[:5] * 2
    else:
        assert sent == [one for one in theirs if not _refuses_the_task(one)]


def _refuses_the_task(compared):
    """Return whether this is the daemon's answer to a task that the requester's own list lacks."""
    message = read_message(*compared)[1] if isinstance(compared, tuple) else None
    return isinstance(message, Error) and message.message == "task does not match any supported_tasks template"


def test_there_are_as_many_jobs_as_were_recorded():
    assert len(CASES) > 80
    assert all(isinstance(_read(one), JobMessage) for case in CASES for one in case.values[0].sent)
    assert own_manifest(Protocol.V02, Limits()) == CASES[0].values[0].peer
