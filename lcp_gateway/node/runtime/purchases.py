"""The jobs that this node buys: quotes asked for, quotes accepted once, and what an earlier run left unpaid or undelivered."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Final

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.lcp.buying import Buying, Phase
from lcp_gateway.node.lcp.buying_events import Accept, Ask, CancelJob, Ended, Order, Outcome
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.link import ManifestMissed
from lcp_gateway.node.lcp.messages import AnyJobMessage, Cancel, Manifest, Protocol, QuoteResponse
from lcp_gateway.node.lcp.table import write_message
from lcp_gateway.node.ports import LightningAway, PaymentLost, PaymentSucceeded, PaymentUnderWay, StoredPurchase
from lcp_gateway.node.runtime import statuses
from lcp_gateway.node.runtime.bounds import PaymentLimits
from lcp_gateway.node.runtime.calls import CallFailed, Delivered, PaymentReport, PaymentState, PurchaseItem
from lcp_gateway.node.runtime.gate import ByteGate
from lcp_gateway.node.runtime.job_ids import JobIds, random_id
from lcp_gateway.node.runtime.observer import Role
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.peer import Peer
from lcp_gateway.node.runtime.peers import Peers
from lcp_gateway.node.runtime.purchase import Purchase, how_ended
from lcp_gateway.upstream_status import UpstreamStatus

_LONG_REQUEST_BYTES: Final = 64 * 1024
_NO_LIMIT: Final = 2**63
_CANCEL_LIFE_S: Final = 300
_KEEP_ENDED_S: Final = 60
_PAID_OUTCOMES: Final = frozenset({Outcome.DELIVERED, Outcome.FAILED, Outcome.CANCELLED})
_UNKNOWN: Final = PaymentReport(state=PaymentState.UNKNOWN)

_Key = tuple[str, bytes]


def seller_manifest(peer: Peer, protocol: Protocol) -> Manifest:
    """Return the manifest of a peer from which jobs can be bought now.

    Raises:
        CallFailed: FAILED_PRECONDITION: it is away, its manifest has not come, or it speaks another version.
    """
    link = peer.links[protocol]
    if not peer.connected:
        raise statuses.refused("peer is not connected with custom messages enabled")
    if not link.ready or link.manifest is None:
        raise statuses.refused("peer is not ready for lcp")
    if not link.sells:
        raise statuses.refused("peer protocol_version mismatch")
    return link.manifest


@dataclass(frozen=True, slots=True)
class _Over:
    """What is remembered of a job that has ended, until its quote has expired."""

    failure: CallFailed
    forget_at: float


class Purchases:
    """All jobs that are bought. ``before_buying`` prepares a peer for a request.

    ``new_id`` makes all ids, those of jobs too; without it they are random, and those of jobs are known again.
    """

    def __init__(
        self,
        parts: NodeParts,
        peers: Peers,
        *,
        limits: PaymentLimits,
        new_id: Callable[[], bytes] | None,
        before_buying: Callable[[Peer, Protocol], None],
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._limits = limits
        self._new_id = new_id or random_id
        self._tags_ids = new_id is None
        self._before_buying = before_buying
        self._job_ids: JobIds | None = None
        self._gate = ByteGate(parts.bounds.cut_input_bytes)
        self._live: dict[_Key, Purchase] = {}
        self._over: dict[_Key, _Over] = {}

    async def start(self) -> None:
        """Go on with the purchases that an earlier run began to pay."""
        if self._tags_ids:
            self._job_ids = JobIds(await self._parts.store.job_key(), self._parts.clock)
        for stored in await self._parts.store.purchases():
            self._add(stored.protocol, stored.peer_id, stored.order, stored.manifest, restored=stored).track()

    def on_message(self, peer_id: str, message: AnyJobMessage) -> bool:
        """Take a message of a seller; False for a job that is not known."""
        purchase = self._live.get((peer_id, message.job_id))
        if purchase is not None:
            purchase.on(MessageCame(message))
        return purchase is not None

    def peer_ready(self, peer_id: str) -> None:
        """Send what waited for a peer."""
        for purchase in [one for (its_peer, _), one in self._live.items() if its_peer == peer_id]:
            purchase.peer_ready()

    def peer_gone(self, peer_id: str) -> None:
        """Give up the jobs of a peer that are not quoted: their messages are lost."""
        for purchase in [one for (its_peer, _), one in self._live.items() if its_peer == peer_id]:
            purchase.send_lost()

    def peer_restarted(self, peer_id: str, protocol: Protocol) -> None:
        """Ask for the quotes that are waited for again: the peer has forgotten the requests."""
        for purchase in [one for (its_peer, _), one in self._live.items() if its_peer == peer_id]:
            if purchase.protocol is protocol:
                purchase.forgotten()

    def send_lost(self, peer_id: str, job_id: bytes) -> bool:
        """Return whether a job is given up because a message of it could not be sent."""
        purchase = self._live.get((peer_id, job_id))
        return purchase is not None and purchase.send_lost()

    async def quote(self, protocol: Protocol, peer: Peer, order: Order) -> QuoteResponse:
        """Ask a peer that is ready for a quote; a second time where it had no manifest of this node, or restarted.

        Raises:
            CallFailed: there is no quote.
        """
        if len(self._live) >= self._parts.bounds.purchases and not self._give_up_oldest():
            raise CallFailed(
                UpstreamStatus.RESOURCE_EXHAUSTED,
                f"too many jobs are under way ({len(self._live)})",
                payment=statuses.NOTHING_PAID,
            )
        self._before_buying(peer, protocol)
        purchase = await self._ask(protocol, peer, order)
        missed = purchase.ended is not None and purchase.ended.manifest_missed
        if missed:
            peer.on(protocol, ManifestMissed())
        if missed or purchase.was_forgotten:
            purchase = await self._ask(protocol, peer, order, again=True)
        ended = purchase.ended
        if purchase.quote is not None and (ended is None or ended.outcome is Outcome.EXPIRED):
            # One that had expired when it came is the caller's to judge, as with lcpd-grpcd; it is not paid.
            return purchase.quote
        if purchase.send_failed or ended is None:
            raise statuses.unavailable("SendCustomMessage: the peer did not get the request")
        if ended.outcome is Outcome.SILENT:
            # The peer may have restarted, without a manifest of this node.
            peer.on(protocol, ManifestMissed())
        raise statuses.of_end(protocol, ended, statuses.NOTHING_PAID, quoted=False)

    async def accept(
        self, peer_id: str, job_id: bytes, max_price_msat: int | None, fee_limit_msat: int | None
    ) -> AsyncGenerator[PurchaseItem, None]:
        """Pay a quote and return its result; the iterator raises ``CallFailed``."""
        purchase = self._claim((peer_id, job_id))
        purchase.claimed = True
        try:
            if purchase.machine.phase is Phase.QUOTED:
                await self._begin(purchase, max_price_msat, fee_limit_msat)
            async with contextlib.aclosing(purchase.items()) as items:
                async for item in items:
                    yield item
            yield self._delivered(purchase)
        finally:
            if purchase.ended is None:
                purchase.abandon("the caller is gone")
            else:
                self._drop((peer_id, job_id))

    async def payment(self, job_id: bytes, payment_hash: bytes) -> PaymentReport:
        """Return what is known of a purchase's payment; a quote that no caller has accepted is given up.

        Raises:
            CallFailed: UNAVAILABLE where the Lightning node or the store has to be asked, and does not answer.
        """
        if (purchase := next((one for (_, its_id), one in self._live.items() if its_id == job_id), None)) is not None:
            if not purchase.claimed and purchase.machine.phase is Phase.QUOTED:
                # From here on it cannot be paid: what is said of it stays true.
                purchase.abandon("the quote is not accepted")
            return replace(purchase.known_payment, payment_hash=purchase.known_payment.payment_hash or payment_hash)
        over = next((one.failure.payment for (_, its_id), one in self._over.items() if its_id == job_id), None)
        if over is not None:
            return replace(over, payment_hash=over.payment_hash or payment_hash)
        try:
            return await self._past_payment(job_id, payment_hash)
        except OSError as error:
            raise statuses.unavailable(f"the node's store: {error}", _UNKNOWN) from None
        except LightningAway as error:
            raise statuses.unavailable(f"TrackPaymentV2: {error}", _UNKNOWN) from None

    async def _past_payment(self, job_id: bytes, payment_hash: bytes) -> PaymentReport:
        """Return what the store, and then the Lightning node, know of a purchase that this run does not."""
        store = self._parts.store
        report = PaymentReport(state=PaymentState.NONE, payment_hash=payment_hash)
        if (ended := await store.ended_purchase(job_id)) is not None:
            state = PaymentState.SETTLED if ended.paid else PaymentState.NONE
            return replace(
                report, state=state, payment_hash=ended.payment_hash, preimage=ended.preimage, fee_msat=ended.fee_msat
            )
        made_at = None if self._job_ids is None else self._job_ids.made_at(job_id)
        # A payment is recorded before it begins. A store that was restored lacks records, hence the Lightning node's word too.
        never_began = made_at is not None and made_at > await store.forgotten_until()
        if never_began and await store.is_hash_used(payment_hash, but_for=job_id):
            # The Lightning node would tell of the other purchase's payment.
            return report
        match await self._parts.payments.find(payment_hash):
            case PaymentSucceeded(preimage, fee_msat):
                return replace(report, state=PaymentState.SETTLED, preimage=preimage, fee_msat=fee_msat)
            case PaymentLost():
                return report
            case PaymentUnderWay():
                return replace(report, state=PaymentState.UNKNOWN)
        return report if never_began else replace(report, state=PaymentState.NO_RECORD)

    def cancel(self, peer: Peer, protocol: Protocol, job_id: bytes, reason: str) -> None:
        """Tell a peer that a job is not wanted, one of which nothing is known too."""
        purchase = self._live.get((peer.peer_id, job_id))
        if purchase is not None:
            purchase.on(CancelJob(reason))
            return
        message = Cancel(
            protocol_version=protocol.value,
            job_id=job_id,
            msg_id=self._new_id(),
            expiry=int(self._parts.clock()) + _CANCEL_LIFE_S,
            reason=reason.strip() or None,
        )
        peer.put(job_id, [Send(*write_message(protocol, message))])

    def _give_up_oldest(self) -> bool:
        """Give up the oldest quote that no caller has taken, as lcpd-grpcd does; False where all jobs are accepted or asked for."""
        quoted = (one for one in self._live.values() if one.machine.phase is Phase.QUOTED and not one.claimed)
        oldest = next(quoted, None)
        if oldest is not None:
            oldest.abandon("")
        return oldest is not None

    def protocol_of(self, peer_id: str, job_id: bytes) -> Protocol | None:
        """Return the version of a job that is under way."""
        purchase = self._live.get((peer_id, job_id))
        return purchase.protocol if purchase is not None else None

    def count(self, *phases: Phase) -> int:
        """Return how many jobs are in one of those phases."""
        return sum(one.machine.phase in phases for one in self._live.values())

    def sweep(self) -> None:
        """Forget jobs whose time is over."""
        now = self._parts.clock()
        for key in [key for key, over in self._over.items() if over.forget_at <= now]:
            del self._over[key]
            # A job that was restored, and that no caller has asked for.
            self._drop(key)

    def stop(self) -> None:
        """Fail the callers that wait: the node stops, and its next run goes on with what was begun to be paid."""
        for purchase in tuple(self._live.values()):
            purchase.stop()

    async def _ask(self, protocol: Protocol, peer: Peer, order: Order, *, again: bool = False) -> Purchase:
        size = len(order.request)
        async with self._gate.taken(size if size > _LONG_REQUEST_BYTES else 0):
            manifest = seller_manifest(peer, protocol)
            purchase = self._add(protocol, peer.peer_id, order, manifest)
            purchase.may_be_forgotten = not again
            try:
                purchase.on(Ask())
                await peer.outbox.until_below(purchase.job_id, 0)
            except BaseException:
                purchase.abandon("the caller is gone")
                raise
        try:
            await purchase.quoted()
        except BaseException:
            purchase.abandon("the caller is gone")
            raise
        return purchase

    def _add(
        self,
        protocol: Protocol,
        peer_id: str,
        order: Order,
        manifest: Manifest,
        *,
        restored: StoredPurchase | None = None,
    ) -> Purchase:
        machine = Buying(
            protocol,
            order,
            peer_id=peer_id,
            manifest=manifest,
            own=self._parts.limits,
            timeouts=self._parts.delays.timeouts,
            new_id=self._new_id,
            job_id=self._job_ids.new() if self._job_ids is not None and restored is None else None,
            kept=restored.kept if restored is not None else None,
        )
        purchase = self._live[peer_id, machine.job_id] = Purchase(
            machine,
            self._parts,
            self._peers,
            protocol=protocol,
            peer_id=peer_id,
            order=order,
            manifest=manifest,
            on_end=self._ended,
            restored=restored,
        )
        return purchase

    def _claim(self, key: _Key) -> Purchase:
        purchase = self._live.get(key)
        if purchase is not None and not purchase.claimed:
            return purchase
        if purchase is not None:
            raise CallFailed(
                UpstreamStatus.FAILED_PRECONDITION, "the job is being executed", payment=purchase.known_payment
            )
        if key in self._over:
            raise self._over[key].failure
        raise statuses.not_found("job")

    async def _begin(self, purchase: Purchase, max_price_msat: int | None, fee_limit_msat: int | None) -> None:
        quote = purchase.quote
        if quote is None:
            raise AssertionError("a job that is quoted has a quote")
        try:
            network = self._peers.network or (await self._peers.identity())[1]
            invoice = bolt11.decode(quote.payment_request)
        except (LightningAway, bolt11.InvoiceError) as error:
            purchase.abandon("")
            raise statuses.unavailable(f"DecodePayReq: {error}") from None
        limits = [one for one in (max_price_msat, self._limits.max_price_msat) if one is not None]
        # A caller can only lower the operator's limits.
        purchase.fee_limit_msat = min(it for it in (fee_limit_msat, self._limits.max_fee_msat) if it is not None)
        purchase.on(Accept(invoice, min(limits, default=_NO_LIMIT), network))

    def _delivered(self, purchase: Purchase) -> Delivered:
        ended = purchase.ended
        if ended is None:
            raise statuses.unavailable("the node stops", purchase.payment)
        if ended.paid and ended.outcome in _PAID_OUTCOMES:
            return Delivered(ended, purchase.machine.result, purchase.payment)
        raise self._failure(purchase, ended)

    def _failure(self, purchase: Purchase, ended: Ended) -> CallFailed:
        if purchase.refusal is not None:
            return statuses.unavailable(f"SendPaymentV2: {purchase.refusal}", purchase.payment)
        return statuses.of_end(purchase.protocol, ended, purchase.payment, quoted=purchase.quote is not None)

    def _ended(self, purchase: Purchase) -> None:
        ended, key = purchase.ended, (purchase.peer_id, purchase.job_id)
        if ended is None:
            return
        self._parts.observer.job_ended(
            role=Role.BUYER,
            end=how_ended(ended),
            model="",
            paid_msat=purchase.quote.price_msat if ended.paid and purchase.quote else 0,
            fee_msat=purchase.payment.fee_msat or 0,
        )
        if ended.paid:
            payment = replace(purchase.payment, state=PaymentState.SETTLED)
            failure = statuses.unavailable("SendPaymentV2: invoice is already paid", payment)
        else:
            failure = self._failure(purchase, ended)
        now = self._parts.clock()
        expiry = purchase.quote.quote_expiry if purchase.quote else now
        if purchase.quote is not None:
            self._over[key] = _Over(failure, max(now, expiry) + _KEEP_ENDED_S)
        waits = purchase.claimed or (purchase.restored and ended.paid)
        if purchase.abandoned or not waits:
            self._drop(key)
        if len(self._over) > self._parts.bounds.purchases:
            oldest = next(iter(self._over))
            del self._over[oldest]
            self._drop(oldest)

    def _drop(self, key: _Key) -> None:
        purchase = self._live.pop(key, None)
        if purchase is not None:
            purchase.release()
