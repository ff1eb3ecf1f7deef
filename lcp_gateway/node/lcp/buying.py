"""One job that is bought: asked for, quoted, paid at most once, received.

The machine decides; its caller carries out the effects in their order, reads invoices, pays, and reports back. A ``Pay`` comes
once in the life of a job, behind the ``KeepPurchase`` that has to be durable before it. A machine that was restored never pays.
"""

import enum
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Final

from lcp_gateway.lightning.error_codes import ErrorCode, read_code
from lcp_gateway.lightning.terms import Terms, hash_terms
from lcp_gateway.node.lcp.buying_events import (
    Accept,
    Ask,
    BuyingEffect,
    BuyingEvent,
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
from lcp_gateway.node.lcp.chunks import StreamError, StreamReader, StreamWriter
from lcp_gateway.node.lcp.effects import MessageCame, Send, SetTimer, TimerFired
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import (
    IDENTITY,
    Cancel,
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
    StreamKind,
)
from lcp_gateway.node.lcp.table import MAX_PAYLOAD_BYTES, hash_params, write_message
from lcp_gateway.node.lcp.tlv import WireError

MESSAGE_LIFE_S: Final = 300
"""How long our messages are valid. A peer whose clock is ahead by more drops them."""

EXPIRY_SLACK_S: Final = 5
"""How much longer than its quote an invoice may be payable, as lcpd-grpcd allows."""


class Phase(enum.StrEnum):
    """Where a job is. Money may move in ``PAYING`` only, which is entered once."""

    NEW = "new"
    ASKED = "asked"
    QUOTED = "quoted"
    PAYING = "paying"
    RECEIVING = "receiving"
    ENDED = "ended"


class Buying:
    """The machine of one job at one seller.

    ``peer_id`` is the seller (66 lower-case hex digits), ``manifest`` its manifest, ``own`` what we take ourselves;
    ``new_id`` returns 32 random bytes, the first of them the job's id unless that is given. Times are Unix seconds.
    """

    def __init__(
        self,
        protocol: Protocol,
        order: Order,
        *,
        peer_id: str,
        manifest: Manifest,
        own: Limits,
        timeouts: PeerTimeouts,
        new_id: Callable[[], bytes],
        job_id: bytes | None = None,
        kept: KeepPurchase | None = None,
    ) -> None:
        """``kept`` is a purchase to go on with after a restart, under its own job's id.

        The caller tracks its payment by the hash, and reports its end. Once it has settled, the request is repeated, if the quote
        still lives: the seller sends its result again.
        """
        if kept is not None:
            job_id = kept.quote.job_id
        self.phase = Phase.NEW if kept is None else Phase.PAYING
        self.job_id = new_id() if job_id is None else job_id
        self._protocol = protocol
        self._order = order
        self._peer_id = peer_id
        self._manifest = manifest
        self._own = own
        self._timeouts = timeouts
        self._new_id = new_id
        self._request_sha256 = sha256(order.request).digest()
        self._request_bytes = len(order.request)
        self._params_sha256 = b""
        self._expiry = 0
        self._quote: QuoteResponse | None = None if kept is None else kept.quote
        self._deadline: float | None = None
        self._reader: StreamReader | None = None
        self.result: Result | None = None
        """The seller's result, as it came; None while there is none, and where an error took its place."""
        self._early: Ended | None = None
        self._gap: Ended | None = None
        self._restored = kept is not None
        self._asked_again = False
        self._unwanted = False

    def on(self, now: float, event: BuyingEvent) -> list[BuyingEffect]:
        """Take an event. One that does not belong to the phase has no effect."""
        match event:
            case Ask() if self.phase is Phase.NEW:
                return self._ask(now)
            case MessageCame(message) if isinstance(message, JobMessage) and message.job_id == self.job_id:
                return self._came(now, message)
            case Accept() if self.phase is Phase.QUOTED:
                return self._accept(now, event)
            case PaymentSettled() if self.phase is Phase.PAYING:
                return self._settled(now)
            case PaymentFailed(reason) if self.phase is Phase.PAYING:
                return self._give_up(now, Outcome.NOT_PAID, reason)
            case CancelJob(reason):
                return self._cancel(now, reason)
            case TimerFired():
                return self._late(now)
        return []

    def _ask(self, now: float) -> list[BuyingEffect]:
        order, peer = self._order, self._manifest
        if len(order.request) > min(peer.max_stream_bytes, peer.max_job_bytes):
            words = ("input", "job") if self._protocol is Protocol.V02 else ("request", "call")
            return self._end(Outcome.NOT_ASKED, f"{words[0]} stream exceeds peer max_stream_bytes/max_{words[1]}_bytes")
        self._expiry = int(now) + MESSAGE_LIFE_S
        try:
            self._params_sha256 = hash_params(self._protocol, order.params)
            effects: list[BuyingEffect] = [self._request()]
            effects += self._input()
        except (StreamError, WireError) as error:
            return self._end(Outcome.NOT_ASKED, str(error))
        self.phase = Phase.ASKED
        return [*effects, self._wait(now + self._timeouts.quote_s)]

    def _request(self) -> Send:
        order = self._order
        request = QuoteRequest(
            protocol_version=self._protocol.value,
            job_id=self.job_id,
            msg_id=self._new_id(),
            expiry=self._expiry,
            task_kind=order.task_kind,
            params=order.params,
            params_content_type=order.params_content_type,
        )
        number, payload = write_message(self._protocol, request)
        if len(payload) > min(self._manifest.max_payload_bytes, MAX_PAYLOAD_BYTES):
            raise WireError("quote_request exceeds peer max_payload_bytes")
        return Send(number, payload)

    def _input(self) -> list[BuyingEffect]:
        writer = StreamWriter(
            self._protocol,
            protocol_version=self._protocol.value,
            job_id=self.job_id,
            expiry=self._expiry,
            stream_id=self._new_id(),
            kind=StreamKind.INPUT,
            content_type=self._order.content_type,
            max_payload_bytes=self._manifest.max_payload_bytes,
            new_id=self._new_id,
        )
        request = self._order.request
        begin = writer.begin(total_len=len(request), sha256=self._request_sha256)
        return [Send(*one) for one in (begin, *writer.chunks(request), writer.end())]

    def _came(self, now: float, message: JobMessage) -> list[BuyingEffect]:
        match message:
            case Error():
                return self._refused(message)
            case QuoteResponse() if self.phase is Phase.ASKED:
                return self._quoted(now, message)
            case _ if self._early is not None:
                return []
            case Result() | StreamBegin() | StreamChunk() | StreamEnd() if self.phase in {
                Phase.PAYING,
                Phase.RECEIVING,
            }:
                try:
                    return self._received(now, message)
                except StreamError as error:
                    return self._broken(now, message, error)
        return []

    def _broken(self, now: float, message: JobMessage, error: StreamError) -> list[BuyingEffect]:
        """End with a stream's fault; but one that only lacks chunks is asked for again, and may still become whole."""
        number = error.code.number(self._protocol)
        text = error.message if self._protocol is Protocol.V02 else error.message.replace("result", "response")
        ended = Ended(Outcome.ERROR, paid=True, message=text, number=number, code=error.code)
        received = self._reader.received_bytes if self._reader is not None else 0
        cut_short = isinstance(message, StreamEnd) and message.total_len > received
        if not cut_short and error.code is not ErrorCode.CHUNK_OUT_OF_ORDER:
            return self._over(ended)
        self._gap = self._gap or ended
        return self._ask_again(now) if self.phase is Phase.RECEIVING else []

    def _ask_again(self, now: float) -> list[BuyingEffect]:
        """Repeat the request, once: same job, kind and params under a new msg_id, and no input.

        A seller answers with its stored quote and its result: ours sends the same again, lcpd-grpcd runs the job again unless it
        still runs.
        """
        if self._asked_again or self._unwanted or now >= self._agreed.quote_expiry:
            return []
        self._asked_again = True
        self._expiry = int(now) + MESSAGE_LIFE_S
        return [self._request()]

    def _refused(self, error: Error) -> list[BuyingEffect]:
        """End with the seller's error. Before the payment it ends the job: nothing is paid for one that the seller gave up."""
        if self.phase in {Phase.NEW, Phase.ENDED}:
            return []
        code = read_code(self._protocol, error.code)
        ended = Ended(Outcome.ERROR, paid=False, message=error.message or "", number=error.code, code=code)
        if self.phase in {Phase.PAYING, Phase.RECEIVING}:
            return self._over(replace(ended, paid=True))
        self._finish()
        return [ended]

    def _quoted(self, now: float, quote: QuoteResponse) -> list[BuyingEffect]:
        order = self._order
        terms = Terms(
            protocol_version=quote.protocol_version,
            job_id=quote.job_id,
            price_msat=quote.price_msat,
            quote_expiry=quote.quote_expiry,
            task_kind=order.task_kind,
            request_sha256=self._request_sha256,
            params_sha256=self._params_sha256,
            request_bytes=len(order.request),
            content_type=order.content_type,
            content_encoding=IDENTITY,
            response_content_type=quote.response_content_type,
            response_content_encoding=quote.response_content_encoding,
        )
        if hash_terms(self._protocol, terms) != quote.terms_hash:
            return self._give_up(now, Outcome.NOT_PAYABLE, "terms_hash mismatch")
        self.phase = Phase.QUOTED
        # The seller has all of the request: it is not needed any more.
        self._order = replace(order, request=b"")
        self._quote = quote
        return [Quoted(quote), self._wait(quote.quote_expiry)]

    def _accept(self, now: float, accept: Accept) -> list[BuyingEffect]:
        quote, invoice = self._agreed, accept.invoice
        if now >= quote.quote_expiry:
            return self._end(Outcome.EXPIRED, "quote expired")
        problems = {
            "invalid request: description_hash is empty": not invoice.description_hash,
            "invoice description_hash does not match terms_hash": invoice.description_hash != quote.terms_hash,
            "invoice destination does not match peer_id": invoice.payee != self._peer_id,
            "price_msat must be > 0": quote.price_msat < 1,
            "invoice amount does not match price": invoice.amount_msat != quote.price_msat,
            "invoice expiry exceeds quote_expiry": invoice.expires_at > quote.quote_expiry + EXPIRY_SLACK_S,
            f"invoice network does not match {accept.network}": invoice.network != accept.network,
            "invoice expired": now >= invoice.expires_at,
            f"price_msat exceeds the limit of {accept.max_price_msat}": quote.price_msat > accept.max_price_msat,
        }
        for problem, there in problems.items():
            if there:
                return self._give_up(now, Outcome.NOT_PAYABLE, problem)
        self.phase = Phase.PAYING
        self._deadline = None
        return [KeepPurchase(quote, invoice.payment_hash), Pay(quote.payment_request, quote.price_msat)]

    def _settled(self, now: float) -> list[BuyingEffect]:
        self.phase = Phase.RECEIVING
        if self._early is not None:
            self._finish()
            return [self._early]
        started = self._reader is not None
        lost = self._gap is not None or (self._restored and not started)
        effects = self._ask_again(now) if lost else []
        return [*effects, self._wait(now + (self._timeouts.idle_s if started else self._timeouts.first_byte_s))]

    def _received(self, now: float, message: JobMessage) -> list[BuyingEffect]:
        effects: list[BuyingEffect] = []
        match message:
            case StreamBegin(stream_kind=StreamKind.RESULT):
                effects = self._begun(message)
            case StreamChunk() if self._reader is not None:
                data = self._reader.chunk(message)
                effects = [ResultData(data)] if data else []
            case StreamEnd() if self._reader is not None:
                effects = []
                self._reader.end(message)
            case Result(status=Status.OK):
                self.result = self.result or message
            case Result():
                self.result = message
                outcome = Outcome.FAILED if message.status is Status.FAILED else Outcome.CANCELLED
                return self._over(Ended(outcome, paid=True, message=message.message or ""))
        if self.result is not None and self._reader is not None and self._reader.ended:
            self._reader.check_result(self.result)
            return [*effects, *self._over(Ended(Outcome.DELIVERED, paid=True))]
        if self.phase is Phase.RECEIVING:
            effects.append(self._wait(now + self._timeouts.idle_s))
        return effects

    def _begun(self, begin: StreamBegin) -> list[BuyingEffect]:
        """Take the head of a stream; a second one only while no byte of the first has come, since bytes cannot be taken back."""
        if self._reader is not None and (self._reader.received_bytes or self._reader.ended):
            return []
        if self._reader is not None and self._reader.stream_id == begin.stream_id:
            return []
        first = self._reader is None
        room = min(self._own.max_stream_bytes, max(0, self._own.max_job_bytes - self._request_bytes))
        self._reader = StreamReader(begin, max_bytes=room)
        return [ResultHead(begin.content_type)] if first else []

    def _cancel(self, now: float, reason: str) -> list[BuyingEffect]:
        if self.phase in {Phase.NEW, Phase.ENDED}:
            return []
        cancel = self._cancel_message(now, reason)
        if self.phase in {Phase.PAYING, Phase.RECEIVING}:
            # The money may be gone: what the seller still sends is the outcome.
            self._unwanted = True
            return [cancel]
        return [cancel, *self._end(Outcome.CANCELLED, reason)]

    def _give_up(self, now: float, outcome: Outcome, message: str) -> list[BuyingEffect]:
        """End a job of which nothing was paid, and tell the seller, which would wait for the payment until the quote expires."""
        return [self._cancel_message(now, ""), *self._end(outcome, message)]

    def _cancel_message(self, now: float, reason: str) -> Send:
        message = Cancel(
            protocol_version=self._protocol.value,
            job_id=self.job_id,
            msg_id=self._new_id(),
            expiry=int(now) + MESSAGE_LIFE_S,
            reason=reason.strip() or None,
        )
        return Send(*write_message(self._protocol, message))

    def _late(self, now: float) -> list[BuyingEffect]:
        if self._deadline is None or now < self._deadline:
            return []
        match self.phase:
            case Phase.ASKED:
                return self._give_up(now, Outcome.SILENT, "no quote in time")
            case Phase.QUOTED:
                return self._end(Outcome.EXPIRED, "quote expired")
            case Phase.RECEIVING:
                if again := self._ask_again(now):
                    return [*again, self._wait(now + self._timeouts.idle_s)]
                if self._gap is not None:
                    return self._over(self._gap)
                return self._end(Outcome.SILENT, "no result in time", paid=True)
        return []

    @property
    def _agreed(self) -> QuoteResponse:
        if self._quote is None:
            raise AssertionError(f"a job that is {self.phase} has a quote")
        return self._quote

    def _wait(self, until: float) -> SetTimer:
        self._deadline = until
        return SetTimer(until)

    def _over(self, ended: Ended) -> list[BuyingEffect]:
        """End a paid job. What came while the payment was under way waits for its end: only that tells what was paid."""
        if self.phase is Phase.PAYING:
            self._early = self._early or ended
            return []
        self._finish()
        return [ended]

    def _end(self, outcome: Outcome, message: str, *, paid: bool = False) -> list[BuyingEffect]:
        self._finish()
        return [Ended(outcome, paid=paid, message=message)]

    def _finish(self) -> None:
        self.phase = Phase.ENDED
        self._deadline = None
