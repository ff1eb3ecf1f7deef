"""A peer that misbehaves: a seller of ours whose backend fails, and whose messages are changed on their way out.

A model's name asks for a fault, as with the embedded node. Prices are changed as well: the embedded node adds a part that does not
depend on the tokens, and a quote may take its time.
"""

import asyncio
import os
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, replace
from hashlib import sha256

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import Terms, hash_terms
from lcp_gateway.node.compute.backend import IDENTITY, JSON_TYPE, STREAM_TYPE, ComputeResult
from lcp_gateway.node.config import derive_key
from lcp_gateway.node.faults import FAULTS, MODEL_PREFIX, FaultInjector
from lcp_gateway.node.lcp.messages import (
    Error,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
)
from lcp_gateway.node.lcp.table import hash_params, read_message, read_params, write_message
from lcp_gateway.node.ports import ComputeError, MessageReceived
from lcp_gateway.node.status import CallError

HOUR_S = 3_600


class FaultyCompute:
    """A backend that computes what ``backend`` does, and fails as the model's name says."""

    def __init__(self, backend, settings) -> None:
        self._backend = backend
        self._injector = FaultInjector(settings)

    async def models(self):
        return ()

    async def run(self, *, job_id, task_kind, model, body, stream):
        fault = FAULTS.get(model.removeprefix(MODEL_PREFIX))
        chunks = self._backend.run(job_id=job_id, task_kind=task_kind, model=model, body=body, stream=stream)
        if fault is None:
            async with aclosing(chunks):
                async for piece in chunks:
                    yield piece
            return
        if fault.name == "fail-after-payment":
            raise ComputeError(ErrorCode.RATE_LIMITED, "backend unavailable: scripted failure")
        if fault.name == "execute-hangs":
            await asyncio.Event().wait()
        result = ComputeResult(STREAM_TYPE if stream else JSON_TYPE, IDENTITY, chunks)
        changed = self._injector.change_result(fault, result, stream=stream)
        try:
            async with aclosing(changed.chunks) as pieces:
                async for piece in pieces:
                    yield piece
        except CallError as error:
            raise ComputeError(ErrorCode.RATE_LIMITED, f"backend unavailable: {error.details}") from None

    async def close(self):
        await self._backend.close()


@dataclass
class _Job:
    """A request, as the messages show it."""

    fault: str
    request: QuoteRequest
    base_msat: int
    input_sha256: bytes = b""
    input_bytes: int = 0


class FaultyTransport:
    """A seller's transport: the messages of a job go out changed as its model's name and price say."""

    def __init__(self, transport, config, peer, invoices) -> None:
        self._transport = transport
        self._config = config
        self._latency_s = peer.quote_latency_s
        self._base_msat = {
            model.name: model.base_msat - (not model.prompt_token_msat and not model.output_token_msat)
            for model in peer.models
        }
        self._invoices = invoices
        self._key = invoices._key
        self._jobs: dict[bytes, _Job] = {}
        self._refused: Counter[str] = Counter()

    async def identity(self):
        return await self._transport.identity()

    async def connect(self, peer_id, address):
        await self._transport.connect(peer_id, address)

    async def disconnect(self, peer_id):
        await self._transport.disconnect(peer_id)

    async def events(self):
        async with aclosing(self._transport.events()) as events:
            async for event in events:
                if isinstance(event, MessageReceived):
                    self._note(event)
                yield event

    def _note(self, event) -> None:
        read = read_message(event.message_type, event.payload)
        match read:
            case (_, QuoteRequest() as request):
                model, _ = read_params(request.params or b"")
                fault = model.removeprefix(MODEL_PREFIX) if model.startswith(MODEL_PREFIX) else ""
                # A repeated request comes without its input.
                self._jobs.setdefault(request.job_id, _Job(fault, request, self._base_msat.get(model, 0)))
            case (_, StreamBegin(stream_kind=StreamKind.INPUT) as begin) if begin.job_id in self._jobs:
                job = self._jobs[begin.job_id]
                job.input_sha256, job.input_bytes = begin.sha256, begin.total_len
            case _:
                pass

    async def send(self, peer_id, message_type, payload) -> None:
        protocol, message = read_message(message_type, payload)
        job = self._jobs.get(getattr(message, "job_id", b""))
        changed = message if job is None else self._changed(protocol, job, message)
        if isinstance(message, QuoteResponse):
            await asyncio.sleep(self._latency_s)
        if changed is not None:
            await self._transport.send(peer_id, *write_message(protocol, changed))

    def _changed(self, protocol, job, message):
        """Return what goes out in place of a message; None where nothing does."""
        name = job.fault
        match message:
            case QuoteResponse():
                return self._quoted(protocol, job, message)
            case _ if name == "no-result":
                return None
            case StreamBegin() if name in {"odd-content-type", "gzip-encoding"}:
                return self._odd(name, message)
            case StreamEnd() | Result() if name == "stream-cut-silently":
                return None
            case StreamEnd() | Result() if name in {"wrong-hash", "wrong-length"} and message.sha256:
                if name == "wrong-hash":
                    return replace(message, sha256=sha256(message.sha256).digest())
                return replace(message, total_len=message.total_len + 1)
            case Result(status=Status.OK) if name in {"result-failed", "result-cancelled"}:
                status = Status.FAILED if name == "result-failed" else Status.CANCELLED
                return Result(
                    protocol_version=message.protocol_version,
                    job_id=message.job_id,
                    msg_id=message.msg_id,
                    expiry=message.expiry,
                    status=status,
                    message="scripted failure",
                )
            case Result(status=Status.OK) if name in {"odd-content-type", "gzip-encoding"}:
                return self._odd(name, message)
            case StreamChunk():
                return message
        return message

    def _odd(self, name, message):
        if name == "gzip-encoding":
            return replace(message, content_encoding="gzip")
        return replace(message, content_type='application/x-odd; charset=koi8-r; q="a,b"')

    def _quoted(self, protocol, job, quote):
        name = job.fault
        if name == "quote-slow":
            return None
        if name == "quote-refused":
            return self._error(protocol, quote, ErrorCode.RATE_LIMITED, "backend unavailable: scripted failure")
        if name == "manifest-not-exchanged":
            self._refused[name] += 1
            if self._refused[name] % (self._config.fault_settings.manifest_refusals + 1):
                return self._error(protocol, quote, ErrorCode.INVALID_STATE, "manifest not exchanged")
            return quote
        if job.base_msat and name != "expensive":
            quote = self._priced(protocol, job, quote)
        return self._requoted(protocol, job, quote)

    def _priced(self, protocol, job, quote):
        """Return a quote with the part of the price that does not depend on the tokens; its invoice asks for that too."""
        quote = replace(quote, price_msat=quote.price_msat + job.base_msat)
        quote = replace(quote, terms_hash=self._terms_hash(protocol, job, quote))
        invoice = bolt11.decode(quote.payment_request)
        kept = self._invoices._invoices[invoice.payment_hash]
        kept.amount_msat = quote.price_msat
        return self._signed(quote, invoice, self._key, self._parts(quote, invoice))

    def _parts(self, quote, invoice):
        now = int(time.time())
        return {
            "network": self._config.network,
            "timestamp": now,
            "amount_msat": quote.price_msat,
            "description_hash": quote.terms_hash,
            "expiry_s": invoice.expires_at - now,
        }

    def _signed(self, quote, invoice, key, parts):
        request = bolt11.encode(
            key, payment_hash=invoice.payment_hash, payment_secret=os.urandom(32), min_final_cltv=80, **parts
        )
        return replace(quote, payment_request=request)

    def _error(self, protocol, quote, code, text):
        return Error(
            protocol_version=quote.protocol_version,
            job_id=quote.job_id,
            msg_id=os.urandom(32),
            expiry=quote.expiry,
            code=code.number(protocol),
            message=text,
        )

    def _requoted(self, protocol, job, quote):
        invoice = bolt11.decode(quote.payment_request)
        match job.fault:
            case "garbage-invoice":
                return replace(quote, payment_request="lnbcrt1thisisnotaninvoice")
            case "bad-signature":
                broken = bolt11.with_signature(quote.payment_request, b"\xff" * 64 + b"\x00")
                return replace(quote, payment_request=broken)
            case "wrong-terms-hash":
                quote = replace(quote, terms_hash=sha256(quote.terms_hash).digest())
            case "expired":
                quote = replace(quote, quote_expiry=int(time.time()) - 1)
                quote = replace(quote, terms_hash=self._terms_hash(protocol, job, quote))
        parts = self._parts(quote, invoice)
        changes = {
            "wrong-price": {"amount_msat": quote.price_msat + 1_000},
            "wrong-payee": {},
            "wrong-description-hash": {"description_hash": sha256(quote.terms_hash).digest()},
            "wrong-terms-hash": {},
            "wrong-network": {"network": "bc"},
            "wrong-invoice-expiry": {"expiry_s": quote.quote_expiry - parts["timestamp"] + HOUR_S},
            "expired-invoice": {"timestamp": parts["timestamp"] - HOUR_S, "expiry_s": 60},
            "expired": {"expiry_s": 1},
        }
        if job.fault not in changes:
            return quote
        key = derive_key(self._config.seed, "a stranger") if job.fault == "wrong-payee" else self._key
        return self._signed(quote, invoice, key, parts | changes[job.fault])

    def _terms_hash(self, protocol, job, quote):
        return hash_terms(
            protocol.value,
            Terms(
                protocol_version=quote.protocol_version,
                job_id=quote.job_id,
                price_msat=quote.price_msat,
                quote_expiry=quote.quote_expiry,
                task_kind=job.request.task_kind,
                request_sha256=job.input_sha256,
                request_bytes=job.input_bytes,
                params_sha256=hash_params(protocol, job.request.params),
            ),
        )
