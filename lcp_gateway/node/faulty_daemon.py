"""The calls of the simulated node's clients: those of an honest node, or of a faulty daemon where a script says so.

Quotes and results that an honest node would refuse by itself, and the answers of a daemon to its client, are changed here. The
hash of a quote is changed together with its invoice: only a client that knows its request can find it out.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from typing import Final

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.terms import Terms, hash_terms
from lcp_gateway.node.config import NodeConfig, derive_key
from lcp_gateway.node.events import EventKind, EventLog
from lcp_gateway.node.faults import Fault, FaultInjector, FaultScript, Stage
from lcp_gateway.node.jobs import Job, Jobs
from lcp_gateway.node.lcp.buying_events import Order, Outcome, ResultData, ResultHead
from lcp_gateway.node.lcp.messages import IDENTITY, SSE, Manifest, Protocol, QuoteResponse, Result, Status
from lcp_gateway.node.lcp.table import hash_params, read_params
from lcp_gateway.node.lcp.tlv import WireError
from lcp_gateway.node.peers import Peers
from lcp_gateway.node.ports import Payments
from lcp_gateway.node.runtime import statuses
from lcp_gateway.node.runtime.calls import (
    CallFailed,
    Delivered,
    LocalInfo,
    NodeCalls,
    Paid,
    PaymentReport,
    PurchaseItem,
    ReadyPeer,
)
from lcp_gateway.upstream_status import UpstreamStatus

_SHORT_ID_BYTES: Final = 16
_MIN_FINAL_CLTV: Final = 80
_FAILED_STATUS: Final = {
    "result-failed": (Outcome.FAILED, Status.FAILED, "scripted failure"),
    "result-cancelled": (Outcome.CANCELLED, Status.CANCELLED, "scripted cancel"),
}


class FaultyDaemon:
    """Implements ``NodeCalls`` over the node that buys. Without a fault, it records the events of a job and changes nothing.

    As lcpd-grpcd it says nothing of payments, and cannot be asked for one, unless it ``reports_payments``.
    """

    def __init__(
        self,
        config: NodeConfig,
        calls: NodeCalls,
        *,
        peers: Peers,
        jobs: Jobs,
        payments: Payments,
        script: FaultScript,
        injector: FaultInjector,
        events: EventLog,
        clock: Callable[[], float],
        reports_payments: bool = False,
    ) -> None:
        self._config = config
        self._calls = calls
        self._peers = peers
        self._jobs = jobs
        self._payments = payments
        self._script = script
        self._injector = injector
        self._events = events
        self._clock = clock
        self._reports = reports_payments

    def ready_peers(self, protocol: Protocol) -> list[ReadyPeer]:
        """Return the peers that are ready, in the order of the configuration."""
        ready = {one.peer_id: one for one in self._calls.ready_peers(protocol)}
        return [
            replace(
                ready[peer.id],
                manifest=replace(
                    self._claimed(ready[peer.id].manifest), max_inflight_jobs=peer.config.max_inflight_jobs or None
                ),
            )
            for peer in self._peers
            if peer.id in ready
        ]

    async def local_info(self, protocol: Protocol) -> LocalInfo:
        """Return this node's id and manifest."""
        info = await self._calls.local_info(protocol)
        return replace(info, manifest=self._claimed(info.manifest), has_extensions=self._reports)

    async def request_quote(self, protocol: Protocol, peer_id: str, order: Order) -> QuoteResponse:
        """Ask a peer for a quote; see ``NodeCalls``."""
        peer = self._peers.get(peer_id)
        if peer is not None and not peer.ready:
            raise statuses.refused("peer is not connected with custom messages enabled")
        model = _model(order)
        fault = self._script.next(Stage.QUOTE, model) if peer is not None and model in peer.models else None
        if fault is not None and fault.code is not None:
            raise CallFailed(UpstreamStatus[fault.code.name], "scripted failure at the quote")
        try:
            with self._jobs.asking(fault):
                quote = await self._calls.request_quote(protocol, peer_id, order)
        except CallFailed as error:
            raise self._shown(error) from None
        job = self._jobs.add(peer_id, model, quote)
        self._events.record_job(EventKind.QUOTE, job)
        return quote if fault is None else self._change_quote(protocol, fault, order, quote, peer_id)

    async def accept(
        self, peer_id: str, job_id: bytes, *, max_price_msat: int | None = None, fee_limit_msat: int | None = None
    ) -> AsyncGenerator[PurchaseItem, None]:
        """Pay a quote, at most once, and return its result as it comes."""
        job = self._jobs.find(peer_id, job_id)
        if job is None:
            what = "job" if self._peers.get(peer_id) is not None else "peer"
            raise CallFailed(UpstreamStatus.NOT_FOUND, f"{what} not found")
        self._events.record_job(EventKind.ACCEPT, job)
        fault = job.fault = self._script.next(Stage.EXECUTE, job.model)
        if job.expired:
            raise CallFailed(UpstreamStatus.FAILED_PRECONDITION, "quote expired")
        if fault is not None and fault.name == "already-paid":
            await self._pay_before(job)
        items = self._calls.accept(peer_id, job_id, max_price_msat=max_price_msat, fee_limit_msat=fee_limit_msat)
        paid = False
        try:
            async with aclosing(items), aclosing(self._changed(fault, job, items) if fault else items) as changed:
                async for item in changed:
                    match item:
                        case Paid():
                            paid = True
                            yield item if self._reports else Paid(None)
                        case Delivered():
                            self._record_end(job, fault, item)
                            yield item if self._reports else replace(item, payment=None)
                        case _:
                            yield item
        except CallFailed as error:
            if paid:
                self._events.record_job(EventKind.RESULT, job, "failed")
            raise self._shown(error) from None

    async def payment(self, job_id: bytes, payment_hash: bytes) -> PaymentReport:
        """Return what is known of a purchase's payment, where payments are reported.

        Raises:
            CallFailed: UNIMPLEMENTED, as at lcpd-grpcd, or as the node that buys.
        """
        if not self._reports:
            raise CallFailed(UpstreamStatus.UNIMPLEMENTED, "unknown service lcpgateway.v1.NodeService")
        return await self._calls.payment(job_id, payment_hash)

    def cancel(self, peer_id: str, job_id: bytes, reason: str) -> None:
        """Tell a peer that a job is not wanted any more; see ``NodeCalls``."""
        self._calls.cancel(peer_id, job_id, reason)
        job = self._jobs.find(peer_id, job_id)
        if job is not None:
            self._events.record_job(EventKind.CANCEL, job)

    def _shown(self, error: CallFailed) -> CallFailed:
        return error if self._reports else CallFailed(error.status, error.details)

    def _claimed(self, manifest: Manifest) -> Manifest:
        return replace(manifest, protocol_version=self._config.protocol_version)

    def _change_quote(
        self, protocol: Protocol, fault: Fault, order: Order, quote: QuoteResponse, peer_id: str
    ) -> QuoteResponse:
        match fault.name:
            case "short-job-id":
                return replace(quote, job_id=quote.job_id[:_SHORT_ID_BYTES])
            case "expired":
                job = self._jobs.get(quote.job_id)
                if job is not None:
                    job.expired = True
                past = replace(quote, quote_expiry=int(self._clock()) - 1)
                terms_hash = _hash(protocol, order, past)
                return self._with_hash(past, terms_hash, peer_id)
            case "wrong-terms-hash":
                return self._with_hash(quote, sha256(quote.terms_hash).digest(), peer_id)
            case _:
                return quote

    def _with_hash(self, quote: QuoteResponse, terms_hash: bytes, peer_id: str) -> QuoteResponse:
        """Return a quote with another hash, and an invoice that repeats it."""
        peer, invoice = self._peers.get(peer_id), bolt11.decode(quote.payment_request)
        if peer is None:
            raise AssertionError("a peer that gave a quote is known")
        request = bolt11.encode(
            derive_key(self._config.seed, peer.config.alias),
            network=invoice.network,
            timestamp=invoice.timestamp,
            payment_hash=invoice.payment_hash,
            payment_secret=invoice.payment_secret or bytes(32),
            amount_msat=quote.price_msat,
            description_hash=terms_hash,
            expiry_s=max(1, min(invoice.expires_at, quote.quote_expiry) - invoice.timestamp),
            min_final_cltv=_MIN_FINAL_CLTV,
        )
        return replace(quote, terms_hash=terms_hash, payment_request=request)

    async def _pay_before(self, job: Job) -> None:
        """Pay a job's invoice, as another client of the Lightning node could have done, and say what lnd says then."""
        if not job.left:
            await self._payments.pay(
                job.payment_request,
                job.payment_hash,
                amount_msat=job.price_msat,
                fee_limit_msat=job.price_msat,
                timeout_s=30,
            )
        raise CallFailed(UpstreamStatus.UNAVAILABLE, "SendPaymentV2: invoice is already paid")

    async def _changed(
        self, fault: Fault, job: Job, items: AsyncGenerator[PurchaseItem, None]
    ) -> AsyncGenerator[PurchaseItem, None]:
        """Yield the items of a purchase with the fault in them."""
        async for item in items:
            yield item
            if isinstance(item, Paid):
                break
        else:
            return
        if fault.code is not None:
            raise CallFailed(UpstreamStatus[fault.code.name], "scripted failure after payment")
        if fault.name == "no-result":
            self._events.record_job(EventKind.RESULT, job, fault.name)
            return
        head = await anext(items)
        if not isinstance(head, ResultHead):
            yield head
            return
        async with aclosing(self._result(fault.name, job, head, items)) as result:
            async for item in result:
                yield item

    async def _result(
        self, name: str, job: Job, begun: ResultHead, items: AsyncGenerator[PurchaseItem, None]
    ) -> AsyncGenerator[PurchaseItem, None]:
        """Yield a result with a fault in it."""
        head = self._injector.head(name, begun)
        yield head
        digest, length, stream = sha256(), 0, begun.content_type == SSE
        end: list[Delivered] = []
        async with aclosing(self._injector.delivered(name, _data(items, end), stream=stream)) as pieces:
            async for piece in pieces:
                digest.update(piece)
                length += len(piece)
                yield ResultData(piece)
        if name == "stream-cut-silently":
            self._events.record_job(EventKind.RESULT, job, name)
            return
        async for _ in _data(items, end):
            pass
        yield self._end(name, end[0], digest.digest(), length, head)

    def _end(self, name: str, end: Delivered, digest: bytes, length: int, head: ResultHead) -> Delivered:
        if end.result is None or end.ended.outcome is not Outcome.DELIVERED:
            return end
        if (lie := _FAILED_STATUS.get(name)) is not None:
            return failed(end, *lie)
        return replace(
            end,
            result=replace(
                end.result,
                sha256=sha256(digest).digest() if name == "wrong-hash" else digest,
                total_len=length + (name == "wrong-length"),
                content_type=head.content_type,
                content_encoding=head.content_encoding,
            ),
        )

    def _record_end(self, job: Job, fault: Fault | None, end: Delivered) -> None:
        detail = "ok" if end.ended.outcome is Outcome.DELIVERED else "failed"
        self._events.record_job(EventKind.RESULT, job, fault.name if fault is not None else detail)


def failed(end: Delivered, outcome: Outcome, status: Status, text: str) -> Delivered:
    """Return an end whose result says that the job failed."""
    result = end.result
    if result is None:
        return end
    return replace(
        end,
        ended=replace(end.ended, outcome=outcome, message=text),
        result=Result(
            protocol_version=result.protocol_version,
            job_id=result.job_id,
            msg_id=result.msg_id,
            expiry=result.expiry,
            status=status,
            message=text,
        ),
    )


def _model(order: Order) -> str:
    try:
        return read_params(order.params or b"")[0]
    except WireError:
        return ""


def _hash(protocol: Protocol, order: Order, quote: QuoteResponse) -> bytes:
    return hash_terms(
        protocol,
        Terms(
            protocol_version=quote.protocol_version,
            job_id=quote.job_id,
            price_msat=quote.price_msat,
            quote_expiry=quote.quote_expiry,
            task_kind=order.task_kind,
            request_sha256=sha256(order.request).digest(),
            params_sha256=hash_params(protocol, order.params),
            request_bytes=len(order.request),
            content_type=order.content_type,
            content_encoding=IDENTITY,
            response_content_type=quote.response_content_type,
            response_content_encoding=quote.response_content_encoding,
        ),
    )


async def _data(items: AsyncGenerator[PurchaseItem, None], end: list[Delivered]) -> AsyncGenerator[bytes, None]:
    """Yield a result's bytes, and leave its end in ``end``."""
    async for item in items:
        match item:
            case ResultData(data):
                yield data
            case Delivered():
                end.append(item)
            case _:
                pass
