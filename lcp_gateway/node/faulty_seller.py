"""A seller that lies or fails as a script says: in the quotes that it sends, and in the jobs that it runs.

It is an honest node over a transport and a backend that are not: its messages are such as any peer could send.
"""

import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from coincurve import PrivateKey

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.faults import FaultInjector, wait_forever
from lcp_gateway.node.jobs import Jobs
from lcp_gateway.node.lcp.messages import Error, Message, Protocol, QuoteResponse
from lcp_gateway.node.lcp.table import read_message, write_message
from lcp_gateway.node.memory.network import MemoryNode, MemoryTransport, Network
from lcp_gateway.node.ports import Compute, ComputeError

QUOTE_TYPES: Final = frozenset({42085, 42105})
"""The types of the messages that are quotes, in both versions."""

_HOUR_S: Final = 3600
_SECRET_BYTES: Final = 32
_MIN_FINAL_CLTV: Final = 80
_ASKS_EACH: Final = 2
"""How often a buyer of ours asks for one quote where the seller says that it has no manifest."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """An invoice before it is signed."""

    network: str
    amount_msat: int
    timestamp: int
    expiry_s: int
    description_hash: bytes
    key: PrivateKey


class FaultyTransport(MemoryTransport):
    """The transport of a seller: quotes leave it as the fault of their job says.

    ``stranger`` is the key of another node, ``refusals`` how many calls for a quote find no manifest exchanged.
    """

    def __init__(
        self, lightning: MemoryNode, network: Network, jobs: Jobs, *, stranger: PrivateKey, refusals: int
    ) -> None:
        super().__init__(network, lightning.node_id)
        self._key = lightning.key
        self._jobs = jobs
        self._stranger = stranger
        self._refusals = refusals * _ASKS_EACH
        self._refused: Counter[str] = Counter()

    async def send(self, peer_id: str, message_type: int, payload: bytes) -> None:
        """Send a message, or what takes the place of a quote."""
        if (
            message_type in QUOTE_TYPES
            and self._jobs.has_quote_faults
            and (read := read_message(message_type, payload)) is not None
        ):
            protocol, quote = read
            if isinstance(quote, QuoteResponse):
                changed = self._change(protocol, quote)
                if changed is None:
                    return
                if changed is not quote:
                    message_type, payload = write_message(protocol, changed)
        await super().send(peer_id, message_type, payload)

    def _change(self, protocol: Protocol, quote: QuoteResponse) -> Message | None:
        fault = self._jobs.quote_fault(quote.job_id)
        match fault.name if fault is not None else "":
            case "quote-slow":
                return None
            case "quote-refused":
                return _error(protocol, quote, ErrorCode.RATE_LIMITED, "scripted refusal")
            case "manifest-not-exchanged" as name:
                self._refused[name] += 1
                if self._refused[name] > self._refusals:
                    return quote
                return _error(protocol, quote, ErrorCode.INVALID_STATE, "manifest not exchanged")
            case "garbage-invoice":
                return replace(quote, payment_request="lnbcrt1thisisnotaninvoice")
            case "bad-signature":
                # A signature that no key can have made, under a checksum that is right.
                broken = bolt11.with_signature(quote.payment_request, b"\xff" * 64 + b"\x00")
                return replace(quote, payment_request=broken)
            case name if (change := _CHANGES.get(name)) is not None:
                return replace(quote, payment_request=self._signed(quote, change))
            case "wrong-payee":
                return replace(quote, payment_request=self._signed(quote, self._by_stranger))
            case _:
                return quote

    def _by_stranger(self, draft: _Draft, _quote: QuoteResponse) -> _Draft:
        return replace(draft, key=self._stranger)

    def _signed(self, quote: QuoteResponse, change: Callable[[_Draft, QuoteResponse], _Draft]) -> str:
        honest = bolt11.decode(quote.payment_request)
        draft = change(
            _Draft(
                self._network.prefix,
                quote.price_msat,
                honest.timestamp,
                honest.expires_at - honest.timestamp,
                quote.terms_hash,
                self._key,
            ),
            quote,
        )
        return bolt11.encode(
            draft.key,
            network=draft.network,
            timestamp=draft.timestamp,
            payment_hash=honest.payment_hash,
            payment_secret=os.urandom(_SECRET_BYTES),
            amount_msat=draft.amount_msat,
            description_hash=draft.description_hash,
            expiry_s=draft.expiry_s,
            min_final_cltv=_MIN_FINAL_CLTV,
        )


_CHANGES: dict[str, Callable[[_Draft, QuoteResponse], _Draft]] = {
    "wrong-price": lambda draft, quote: replace(draft, amount_msat=quote.price_msat + 1_000),
    "wrong-description-hash": lambda draft, quote: replace(draft, description_hash=sha256(quote.terms_hash).digest()),
    "wrong-network": lambda draft, _: replace(draft, network="bc"),
    "wrong-invoice-expiry": lambda draft, quote: replace(
        draft, expiry_s=quote.quote_expiry - draft.timestamp + _HOUR_S
    ),
    "expired-invoice": lambda draft, _: replace(draft, timestamp=draft.timestamp - _HOUR_S, expiry_s=60),
}


def _error(protocol: Protocol, quote: QuoteResponse, code: ErrorCode, text: str) -> Error:
    return Error(
        protocol_version=quote.protocol_version,
        job_id=quote.job_id,
        msg_id=os.urandom(_SECRET_BYTES),
        expiry=quote.expiry,
        code=code.number(protocol),
        message=text,
    )


class FaultyCompute:
    """A backend whose jobs fail, hang, or have other results, as their faults say."""

    def __init__(self, backend: Compute, jobs: Jobs, injector: FaultInjector) -> None:
        self._backend = backend
        self._jobs = jobs
        self._injector = injector

    async def models(self) -> tuple[str, ...]:
        """Return the models that the backend has now."""
        return await self._backend.models()

    def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Run a job; see ``ports.Compute``."""
        job = self._jobs.get(job_id)
        chunks = self._backend.run(job_id=job_id, task_kind=task_kind, model=model, body=body, stream=stream)
        if job is None or job.fault is None:
            return chunks
        return self._faulty(job.fault.name, chunks, stream=stream)

    async def _faulty(
        self, name: str, chunks: AsyncGenerator[bytes, None], *, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        if name == "fail-after-payment":
            raise ComputeError(ErrorCode.RATE_LIMITED, "backend unavailable: scripted failure")
        if name == "execute-hangs":
            await wait_forever()
        async with aclosing(chunks), aclosing(self._injector.computed(name, chunks, stream=stream)) as changed:
            async for chunk in changed:
                yield chunk

    async def close(self) -> None:
        """Close the backend."""
        await self._backend.close()
