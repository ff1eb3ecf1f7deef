"""One job that is sold: its input, its quote, the payment that is waited for, its result.

The machine decides; its caller carries out the effects in their order, makes and watches invoices, runs the backend, and reports
back. What has to survive a restart comes as a ``Keep…`` effect before what depends on it: a job that was paid is finished, and a
result that was sent can be sent again, with the same stream and the same cuts.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.chunks import StreamError, StreamReader, StreamWriter
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.judging import RequestRefused, SoldModel, judge_begin
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import (
    IDENTITY,
    JSON,
    SSE,
    Cancel,
    Error,
    JobMessage,
    Manifest,
    Message,
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
from lcp_gateway.node.lcp.offering import Offered, offer
from lcp_gateway.node.lcp.replay import is_expired
from lcp_gateway.node.lcp.selling_events import (
    INTERRUPTED,
    OUTCOMES,
    TOO_LONG,
    CancelInvoice,
    Compute,
    ComputeData,
    ComputeEnded,
    ComputeFailed,
    InvoiceAccepted,
    InvoiceFailed,
    InvoiceLost,
    InvoiceMade,
    InvoiceSettled,
    KeepSale,
    KeepSent,
    MakeInvoice,
    PeerBack,
    QuoteExpired,
    SaleEffect,
    SaleEvent,
    SaleOutcome,
    SalePhase,
    SaleTerms,
    SettleInvoice,
    StopCompute,
)
from lcp_gateway.node.lcp.table import MAX_PAYLOAD_BYTES, read_message, write_message


class Selling:
    """The machine of one job, whose request was judged.

    ``peer`` is the requester's manifest; the caller replaces it when a later one comes. ``inflight`` returns how many other
    jobs are quoted or run; ``new_id`` returns 32 random bytes. The caller drops what is expired or comes twice before it gets
    here, and forgets a job some time after its quote has expired, unless it is paid and runs.
    """

    def __init__(
        self,
        protocol: Protocol,
        request: QuoteRequest,
        *,
        model: str,
        sold: SoldModel,
        peer: Manifest,
        own: Limits,
        terms: SaleTerms,
        inflight: Callable[[], int],
        new_id: Callable[[], bytes],
        kept: KeepSale | None = None,
        sent: Sequence[Send] = (),
    ) -> None:
        """``kept`` is a job to go on with after a restart, ``sent`` are the messages of its result that were kept.

        The caller looks its invoice up, and reports ``InvoiceSettled`` if it is paid. A job that had begun to stream cannot be
        run from its middle: it ends with an error; so does one without its body, which was not kept.
        """
        self.phase = SalePhase.AWAITING_INPUT
        self.outcome: SaleOutcome | None = None
        self.paid = False
        """Whether the payment is ours. One that is held is not yet."""
        self.peer = peer
        self._held = False
        self._protocol = protocol
        self._request = request
        self._model = model
        self._sold = sold
        self._own = own
        self._terms = terms
        self._inflight = inflight
        self._new_id = new_id
        self._reader: StreamReader | None = None
        self._body = bytearray()
        self._stream = False
        self._offered: Offered | None = None
        self._asked: JobMessage = request
        self._quote: QuoteResponse | None = None
        self._payment_hash = b""
        self._whole = bytearray()
        self._result_bytes = 0
        self._writer: StreamWriter | None = None
        self._stream_id = b""
        self._result_expiry = 0
        self._sent: list[Send] = []
        if kept is not None:
            self._restore(kept, sent)

    def _restore(self, kept: KeepSale, sent: Sequence[Send]) -> None:
        self._body = bytearray(kept.body)
        self._stream = kept.stream
        self._quote = kept.quote
        self._payment_hash = kept.payment_hash
        self._sent = list(sent)
        self.phase = SalePhase.QUOTED
        last = read_message(sent[-1].message_type, sent[-1].payload) if sent else None
        if last is not None and isinstance(last[1], Result | Error):
            self.phase = SalePhase.DELIVERED
            status = last[1].status if isinstance(last[1], Result) else Status.FAILED
            self.outcome = OUTCOMES[status]
            self._body.clear()
            if not kept.body and status is Status.OK:
                # Only the last message was kept: the result cannot be sent again.
                self._sent = []

    def on(self, now: float, event: SaleEvent) -> list[SaleEffect]:
        """Take an event. One that does not belong to the phase has no effect."""
        match event:
            case MessageCame(message) if isinstance(message, JobMessage) and message.job_id == self._request.job_id:
                if is_expired(int(now), message.expiry):
                    return []
                try:
                    return self._came(now, message)
                except (RequestRefused, StreamError) as error:
                    return [self._error(error.code, error.message, message, now)]
            case InvoiceMade() | InvoiceFailed():
                return self._invoice(now, event)
            case InvoiceSettled() | InvoiceAccepted() | InvoiceLost():
                return self._payment(event)
            case ComputeData(b""):
                return []
            case ComputeData() | ComputeEnded() | ComputeFailed() if self.phase is SalePhase.RUNNING:
                return self._computed(now, event)
            case QuoteExpired():
                return self._expired()
            case PeerBack():
                return list(self._sent)
        return []

    def _invoice(self, now: float, event: InvoiceMade | InvoiceFailed) -> list[SaleEffect]:
        match event:
            case InvoiceMade() if self.phase is SalePhase.PRICED:
                return self._quoted(now, event)
            case InvoiceMade(payment_hash=payment_hash) if self.phase is SalePhase.ENDED:
                return [CancelInvoice(payment_hash)]
            case InvoiceFailed(reason) if self.phase is SalePhase.PRICED:
                self.phase = SalePhase.AWAITING_INPUT
                return [self._error(ErrorCode.PAYMENT_REQUIRED, reason, self._asked, now)]
        return []

    def _payment(self, event: InvoiceSettled | InvoiceAccepted | InvoiceLost) -> list[SaleEffect]:
        quoted = self.phase is SalePhase.QUOTED
        match event:
            case InvoiceSettled():
                self.paid = True
                self._held = False
                return self._run() if quoted else []
            case InvoiceAccepted() if quoted:
                effects = self._run()
                self._held = self.phase is SalePhase.RUNNING
                return effects if self._held else [CancelInvoice(self._payment_hash), *effects]
            case InvoiceLost() if self.phase is SalePhase.RUNNING and not self.paid:
                return [StopCompute(), *self._failed(ErrorCode.PAYMENT_REQUIRED, "the payment was not settled")]
        return []

    def _computed(self, now: float, event: ComputeData | ComputeEnded | ComputeFailed) -> list[SaleEffect]:
        """Take what the backend says. Its first byte decides where a payment that is held goes."""
        held, self._held = self._held, False
        try:
            effects = self._of_backend(now, event)
        except StreamError:
            # The peer takes no message that could carry it.
            effects = [StopCompute(), *self._result(now, Status.FAILED, TOO_LONG)]
        if not held:
            return effects
        failed = self.phase is SalePhase.ENDED
        return [CancelInvoice(self._payment_hash) if failed else SettleInvoice(), *effects]

    def _of_backend(self, now: float, event: ComputeData | ComputeEnded | ComputeFailed) -> list[SaleEffect]:
        match event:
            case ComputeData(data):
                return self._data(now, data)
            case ComputeEnded():
                return self._finished(now)
            case ComputeFailed(code, message):
                return self._failed(code, message)

    def _came(self, now: float, message: JobMessage) -> list[SaleEffect]:
        match message:
            case StreamBegin(stream_kind=StreamKind.INPUT):
                self._begun(message)
            case StreamChunk() if self._reader is not None and self.phase is SalePhase.AWAITING_INPUT:
                self._body += self._reader.chunk(message)
            case StreamEnd() if self._reader is not None:
                if self.phase is SalePhase.AWAITING_INPUT and self._reader.end(message):
                    return self._priced(now, message)
            case StreamEnd() if self._quote is None:
                raise RequestRefused(ErrorCode.INVALID_STATE, "no input stream for job")
            case Cancel():
                return self._cancelled(now)
            case QuoteRequest():
                return self._repeated(now, message)
        return []

    def _begun(self, begin: StreamBegin) -> None:
        """Take the head of an input. One that comes twice is no fault: an error would end a job that may be paid."""
        judge_begin(begin, self._own.max_stream_bytes)
        if self.phase is SalePhase.AWAITING_INPUT:
            self._reader = StreamReader(begin, max_bytes=self._own.max_stream_bytes)
            self._body.clear()
            return
        # A job that was restored knows no stream any more.
        known = self._reader.stream_id if self._reader is not None else begin.stream_id if self._quote else None
        if begin.stream_id != known:
            raise RequestRefused(ErrorCode.INVALID_STATE, "job not awaiting input")

    def repeats(self, request: QuoteRequest) -> bool:
        """Return whether a request asks for the same as this job's."""
        return (request.task_kind, request.params) == (self._request.task_kind, self._request.params)

    def _priced(self, now: float, end: StreamEnd) -> list[SaleEffect]:
        offered = self._offered = offer(
            self._protocol,
            self._request,
            bytes(self._body),
            model=self._model,
            sold=self._sold,
            terms=self._terms,
            inflight=self._inflight(),
            now=now,
        )
        self._stream, self._asked = offered.stream, end
        self.phase = SalePhase.PRICED
        return [MakeInvoice(offered.terms_hash, offered.price_msat, self._terms.invoice_expiry_s, self._terms.hold)]

    def _quoted(self, now: float, invoice: InvoiceMade) -> list[SaleEffect]:
        offered = self._offered
        if offered is None:
            raise AssertionError("a job that is priced has a price")
        quote = QuoteResponse(
            **self._envelope(offered.quote_expiry),
            price_msat=offered.price_msat,
            quote_expiry=offered.quote_expiry,
            terms_hash=offered.terms_hash,
            payment_request=invoice.payment_request,
        )
        message = self._message(quote)
        if len(message.payload) > min(self.peer.max_payload_bytes, MAX_PAYLOAD_BYTES):
            self.phase = SalePhase.AWAITING_INPUT
            name = "quote_response" if self._protocol is Protocol.V02 else "quote"
            problem = f"{name} exceeds remote max_payload_bytes"
            refusal = self._error(ErrorCode.PAYLOAD_TOO_LARGE, problem, self._asked, now)
            return [CancelInvoice(invoice.payment_hash), refusal]
        self.phase = SalePhase.QUOTED
        self._quote, self._payment_hash = quote, invoice.payment_hash
        kept = KeepSale(self._request, self._model, bytes(self._body), self._stream, quote, invoice.payment_hash)
        return [kept, message]

    def _run(self) -> list[SaleEffect]:
        self.phase = SalePhase.RUNNING
        if self._sent or not self._body:
            return self._failed(ErrorCode.RATE_LIMITED, INTERRUPTED)
        return [Compute(self._request.task_kind, self._model, bytes(self._body), self._stream)]

    def _data(self, now: float, data: bytes) -> list[SaleEffect]:
        self._result_bytes += len(data)
        room = min(self.peer.max_stream_bytes, self.peer.max_job_bytes - len(self._body))
        if self._result_bytes > room:
            return [StopCompute(), *self._result(now, Status.FAILED, TOO_LONG)]
        if not self._stream:
            self._whole += data
            return []
        messages: list[Send] = []
        if self._writer is None:
            messages.append(Send(*self._begin(now, SSE).begin()))
        return self._keep([*messages, *self._cut(data)])

    def _finished(self, now: float) -> list[SaleEffect]:
        messages: list[Send] = []
        whole = bytes(self._whole)
        if self._writer is None and self._stream:
            messages.append(Send(*self._begin(now, SSE).begin()))
        elif self._writer is None:
            begin = self._begin(now, JSON).begin(total_len=len(whole), sha256=sha256(whole).digest())
            messages += [Send(*begin), *self._cut(whole)]
        writer = self._opened
        messages.append(Send(*writer.end()))
        result = Result(
            **self._envelope(self._result_expiry),
            status=Status.OK,
            stream_id=self._stream_id,
            sha256=writer.digest,
            total_len=writer.sent_bytes,
            content_type=SSE if self._stream else JSON,
            content_encoding=IDENTITY,
        )
        self.phase, self.outcome = SalePhase.DELIVERED, SaleOutcome.DELIVERED
        self._whole.clear()
        self._body.clear()
        return self._keep([*messages, self._message(result)])

    def _failed(self, code: ErrorCode, message: str) -> list[SaleEffect]:
        """Tell the peer that its paid job failed: the error lives as long as the quote."""
        self.phase, self.outcome = SalePhase.ENDED, SaleOutcome.FAILED
        self._body.clear()
        expiry = self._quote.quote_expiry if self._quote is not None else self._request.expiry
        return self._keep(
            [self._message(Error(**self._envelope(expiry), code=code.number(self._protocol), message=message))]
        )

    def _cancelled(self, now: float) -> list[SaleEffect]:
        """Stop the job, make its invoice unpayable, and answer: a requester waits for its result otherwise."""
        phase = self.phase
        if phase in {SalePhase.DELIVERED, SalePhase.ENDED}:
            return []
        self.phase, self.outcome = SalePhase.ENDED, SaleOutcome.CANCELLED
        self._body.clear()
        if phase in {SalePhase.AWAITING_INPUT, SalePhase.PRICED}:
            self._reader = None
            return []
        stop = [StopCompute()] if phase is SalePhase.RUNNING else []
        back = [CancelInvoice(self._payment_hash)] if phase is SalePhase.QUOTED or self._held else []
        return [*stop, *back, *self._result(now, Status.CANCELLED, "cancelled")]

    def _expired(self) -> list[SaleEffect]:
        phase = self.phase
        if phase in {SalePhase.RUNNING, SalePhase.DELIVERED, SalePhase.ENDED}:
            return []
        self.phase, self.outcome, self._reader = SalePhase.ENDED, SaleOutcome.EXPIRED, None
        self._body.clear()
        return [CancelInvoice(self._payment_hash)] if phase is SalePhase.QUOTED else []

    def _repeated(self, now: float, request: QuoteRequest) -> list[SaleEffect]:
        """Answer a repeated request with the stored quote, and with what was sent of the result: nothing runs twice."""
        if self._quote is not None and self._quote.quote_expiry < now:
            raise RequestRefused(ErrorCode.QUOTE_EXPIRED, "quote expired")
        if not self.repeats(request):
            raise RequestRefused(ErrorCode.PAYMENT_INVALID, "quote_request mismatch for job")
        if self._quote is None:
            return []
        if self.phase is SalePhase.DELIVERED and not self._sent:
            return [self._message(self._quote), *self._failed(ErrorCode.RATE_LIMITED, INTERRUPTED)]
        return [self._message(self._quote), *self._sent]

    def _result(self, now: float, status: Status, message: str) -> list[SaleEffect]:
        self.phase, self.outcome = SalePhase.ENDED, OUTCOMES[status]
        self._body.clear()
        expiry = self._result_expiry or int(now) + self._terms.ttl_s
        return self._keep([self._message(Result(**self._envelope(expiry), status=status, message=message))])

    def _begin(self, now: float, content_type: str) -> StreamWriter:
        self._stream_id = self._new_id()
        self._result_expiry = int(now) + self._terms.ttl_s
        self._writer = StreamWriter(
            self._protocol,
            protocol_version=self._request.protocol_version,
            job_id=self._request.job_id,
            expiry=self._result_expiry,
            stream_id=self._stream_id,
            kind=StreamKind.RESULT,
            content_type=content_type,
            max_payload_bytes=self.peer.max_payload_bytes,
            new_id=self._new_id,
        )
        return self._writer

    @property
    def _opened(self) -> StreamWriter:
        if self._writer is None:
            raise AssertionError("the result's stream has begun")
        return self._writer

    def _cut(self, data: bytes) -> list[Send]:
        return [Send(*one) for one in self._opened.chunks(data)]

    def _keep(self, messages: list[Send]) -> list[SaleEffect]:
        self._sent += messages
        return [KeepSent(tuple(messages)), *messages]

    def _error(self, code: ErrorCode, text: str, asked: JobMessage, now: float) -> Send:
        """Return a refusal in the envelope of the message that it answers."""
        expiry = asked.expiry or int(now) + self._terms.ttl_s
        return self._message(Error(**self._envelope(expiry), code=code.number(self._protocol), message=text))

    def _envelope(self, expiry: int) -> dict[str, Any]:
        request = self._request
        return {
            "protocol_version": request.protocol_version,
            "job_id": request.job_id,
            "msg_id": self._new_id(),
            "expiry": expiry,
        }

    def _message(self, message: Message) -> Send:
        return Send(*write_message(self._protocol, message))
