"""One job that is bought: the machine of ``lcp/buying``, its messages, its payment, and the items that its caller reads.

The payment runs in a task of its own: a caller that goes away does not end it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from lcp_gateway.node.lcp.buying import Buying, Phase
from lcp_gateway.node.lcp.buying_events import (
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
    Quoted,
    ResultData,
    ResultHead,
)
from lcp_gateway.node.lcp.effects import MessageCame, Send, SetTimer, TimerFired
from lcp_gateway.node.lcp.messages import Manifest, Protocol, QuoteResponse
from lcp_gateway.node.ports import (
    LightningAway,
    PaymentEnd,
    PaymentHashUsed,
    PaymentLost,
    PaymentRefused,
    PaymentSucceeded,
    StoredPurchase,
)
from lcp_gateway.node.runtime.calls import Paid, PaymentReport, PaymentState
from lcp_gateway.node.runtime.observer import JobEnd
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.peers import Peers
from lcp_gateway.node.runtime.tasks import Timer

_UNANSWERED: Final = 8
"""How many messages of an accepted job are kept to be sent again: there are only cancels and a repeated request."""

_SMALL_BYTES: Final = 1_024
"""A piece of a result that is shorter is gathered with others that wait."""

_ENDS: Final = {
    Outcome.DELIVERED: (JobEnd.DELIVERED, JobEnd.DELIVERED),
    Outcome.FAILED: (JobEnd.FAILED, JobEnd.REFUSED),
    Outcome.ERROR: (JobEnd.FAILED, JobEnd.REFUSED),
    Outcome.CANCELLED: (JobEnd.CANCELLED, JobEnd.CANCELLED),
    Outcome.SILENT: (JobEnd.LOST, JobEnd.REFUSED),
    Outcome.NOT_PAID: (JobEnd.UNPAID, JobEnd.UNPAID),
    Outcome.EXPIRED: (JobEnd.EXPIRED, JobEnd.EXPIRED),
    Outcome.NOT_ASKED: (JobEnd.REFUSED, JobEnd.REFUSED),
    Outcome.NOT_PAYABLE: (JobEnd.REFUSED, JobEnd.REFUSED),
}
"""How an outcome counts: of a job that was paid, and of one that was not."""


def how_ended(ended: Ended) -> JobEnd:
    """Return how the end of a job that was bought counts."""
    paid, unpaid = _ENDS[ended.outcome]
    return paid if ended.paid else unpaid


class Purchase:
    """A job at one seller. ``order`` and ``manifest`` are those with which the machine was made.

    ``on_end`` is called once, when the job is over.
    """

    def __init__(
        self,
        machine: Buying,
        parts: NodeParts,
        peers: Peers,
        *,
        protocol: Protocol,
        peer_id: str,
        order: Order,
        manifest: Manifest,
        on_end: Callable[["Purchase"], None],
        restored: StoredPurchase | None = None,
    ) -> None:
        self.machine = machine
        self.protocol = protocol
        self.peer_id = peer_id
        self.quote: QuoteResponse | None = restored.kept.quote if restored else None
        self.ended: Ended | None = None
        self.payment = PaymentReport(state=PaymentState.NONE)
        self.refusal: str | None = None
        """Why the payment was not begun; None where it was, or where nothing was to be paid."""
        self.claimed = False
        """Whether a caller has accepted the quote: a second one gets nothing."""
        self.abandoned = False
        """Whether no caller wants the job any more."""
        self.restored = restored is not None
        """Whether an earlier run of this node began to pay it: a caller may still fetch its result."""
        self.send_failed = False
        self.may_be_forgotten = True
        """Whether a manifest that comes unasked counts as the peer's restart; one that is sent from time to time does so once."""
        self.was_forgotten = False
        """Whether the peer restarted before it gave a quote."""
        self.fee_limit_msat = 0
        self._parts = parts
        self._peers = peers
        self._order = order
        self._manifest = manifest
        self._on_end = on_end
        self._kept = restored.kept if restored else None
        self._payer = restored.payer if restored else ""
        self._stopped = False
        self._stored = restored is not None
        self._ended_at = 0
        self._items: deque[ResultHead | ResultData | bytearray] = deque()
        # Sent while the peer was away, or lost with its connection, unless the peer has answered since.
        self._unanswered: deque[Send] = deque(maxlen=_UNANSWERED)
        self._changed = asyncio.Event()
        self._timer = Timer(parts.clock, self._timed_out)
        self._claim = Timer(parts.clock, self.release)

    @property
    def job_id(self) -> bytes:
        """The job's id."""
        return self.machine.job_id

    @property
    def known_payment(self) -> PaymentReport:
        """What a call that does not pay itself may be told: before the end, that nothing is paid yet says nothing of later."""
        if self.ended is None and self.payment.state is PaymentState.NONE:
            return self._report(PaymentState.UNKNOWN)
        return self.payment

    def on(self, event: BuyingEvent) -> None:
        """Take an event, and carry out its effects in their order."""
        if isinstance(event, MessageCame):
            self._unanswered.clear()
        effects = self.machine.on(self._parts.clock(), event)
        if self.ended is None and self.machine.phase is Phase.ENDED:
            self._drop_unsent()
        for effect in effects:
            self._carry_out(effect)
        self._changed.set()

    async def quoted(self) -> None:
        """Return once there is a quote, or an end in its place, or the node stops."""
        while self.quote is None and self.ended is None and not self._stopped:
            await self._change()

    async def items(self) -> AsyncGenerator[Paid | ResultHead | ResultData, None]:
        """Return ``Paid`` once the payment has settled, then the result as it comes, until the job has ended."""
        told = False
        while True:
            settled = self.payment.state is PaymentState.SETTLED
            if settled and not told:
                told = True
                yield Paid(self.payment)
            while self._items and settled:
                item = self._items.popleft()
                yield ResultData(bytes(item)) if isinstance(item, bytearray) else item
            if self.ended is not None or self._stopped:
                return
            await self._change()

    def stop(self) -> None:
        """End the caller's wait: the node stops."""
        self._stopped = True
        self._timer.cancel()
        self._claim.cancel()
        self._changed.set()

    def abandon(self, reason: str) -> None:
        """Take it that no caller wants the job: before the payment has begun nothing is paid, afterwards the peer is told."""
        self.abandoned = True
        self._items.clear()
        if self.ended is None and not self._stopped:
            self.on(CancelJob(reason))

    def track(self) -> None:
        """Follow a payment that an earlier run of this node began."""
        self.payment = self._report(PaymentState.UNKNOWN)
        self._parts.tasks.once("track", self._track)

    def peer_ready(self) -> None:
        """Send what waited for the peer."""
        peer = self._peers.get(self.peer_id)
        if peer is not None:
            peer.put(self.job_id, list(self._unanswered))

    def send_lost(self) -> bool:
        """Return whether the job ends because a message could not be sent: before the quote it does, and nothing was paid."""
        if self.machine.phase is not Phase.ASKED:
            return False
        self.send_failed = True
        self.abandon("")
        return True

    def _carry_out(self, effect: BuyingEffect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case SetTimer(at):
                self._timer.set(at)
            case Quoted(quote):
                self.quote = quote
                self._order = replace(self._order, request=b"")
            case KeepPurchase():
                self._kept = effect
            case Pay():
                self._parts.tasks.once("pay", partial(self._pay, effect), self._unexpected)
            case ResultHead() | ResultData() if not self.abandoned:
                self._append(effect)
            case Ended():
                self._end(effect)

    def _append(self, item: ResultHead | ResultData) -> None:
        """Keep an item for the caller. Small pieces are gathered: each as an item of its own takes a hundred times its bytes."""
        last = self._items[-1] if self._items else None
        if isinstance(item, ResultData) and len(item.data) < min(_SMALL_BYTES, self._parts.bounds.gathered_bytes):
            if isinstance(last, bytearray) and len(last) < self._parts.bounds.gathered_bytes:
                last += item.data
                return
            if last is not None:
                self._items.append(bytearray(item.data))
                return
        self._items.append(item)

    def forgotten(self) -> None:
        """Give up a job without a quote: the peer has forgotten its request."""
        if self.may_be_forgotten and self.machine.phase is Phase.ASKED:
            self.was_forgotten = True
            self.abandon("")

    def _send(self, message: Send) -> None:
        peer = self._peers.get(self.peer_id)
        if peer is not None:
            peer.put(self.job_id, [message])
        if self.machine.phase in {Phase.PAYING, Phase.RECEIVING}:
            self._unanswered.append(message)

    def _drop_unsent(self) -> None:
        """Drop messages that wait: those of a request of which nothing is wanted any more."""
        self._unanswered.clear()
        if (peer := self._peers.get(self.peer_id)) is not None:
            peer.outbox.drop(self.job_id)

    def _timed_out(self) -> None:
        peer = self._peers.get(self.peer_id)
        if self.machine.phase is Phase.ASKED and peer is not None and peer.outbox.waiting_bytes(self.job_id):
            # The request is still on its way: the peer's silence has not begun.
            self._timer.set(self._parts.clock() + self._parts.delays.timeouts.quote_s)
            return
        self.on(TimerFired())

    async def _pay(self, pay: Pay) -> None:
        kept, parts = self._kept, self._parts
        if kept is None:
            raise AssertionError("a purchase is kept before it is paid")
        self._payer = self._peers.node_id
        stored = StoredPurchase(
            peer_id=self.peer_id,
            protocol=self.protocol,
            order=self._order,
            kept=kept,
            manifest=self._manifest,
            payer=self._payer,
        )
        # From here on a stop of the node may leave the purchase on disk, to be tracked by the next run.
        self._stored = True
        try:
            await parts.store.keep_purchase(stored)
        except PaymentHashUsed:
            # lnd would say that it is paid already, and one payment count for two jobs.
            self._paid(PaymentLost("the invoice has the payment hash of another purchase"))
            return
        except OSError as error:
            parts.log.problem("keep_purchase", error)
            self._not_begun("the purchase could not be recorded")
            return
        if self.abandoned:
            self._not_begun("the caller is gone")
            return
        self.payment = self._report(PaymentState.UNKNOWN)
        try:
            end = await parts.payments.pay(
                pay.payment_request,
                kept.payment_hash,
                amount_msat=pay.price_msat,
                fee_limit_msat=self.fee_limit_msat,
                timeout_s=parts.delays.payment_timeout_s,
            )
            await self._check_payer(end)
        except PaymentRefused as error:
            if not error.already_paid:
                self._not_begun(str(error))
                return
        except Exception as error:  # noqa: BLE001 - whatever it was, the payment may be under way
            parts.log.problem("pay", error)
        else:
            self._paid(end)
            return
        await self._track()

    async def _track(self) -> None:
        """Learn the end of a payment that may have been begun; nothing is paid again."""
        payment_hash = self._kept.payment_hash if self._kept else b""

        async def step() -> None:
            end = await self._parts.payments.track(payment_hash)
            await self._check_payer(end)
            self._paid(end)

        await self._parts.tasks.persist("track", step, Exception)

    async def _check_payer(self, end: PaymentEnd) -> None:
        """Check that a loss is told by the Lightning node that pays: another one, which took its place, has no record of the payment.

        Raises:
            LightningAway: it is another one, or does not say.
        """
        if not self._payer or not isinstance(end, PaymentLost):
            return
        if (await self._peers.identity())[0] != self._payer:
            raise LightningAway(f"another Lightning node is in the place of {self._payer}, which pays a purchase")

    def _paid(self, end: PaymentEnd) -> None:
        if isinstance(end, PaymentSucceeded):
            self.payment = self._report(PaymentState.SETTLED, end)
            self.on(PaymentSettled())
        else:
            self.payment = self._report(PaymentState.NONE)
            self.on(PaymentFailed(end.reason))

    def _not_begun(self, reason: str) -> None:
        self.payment, self.refusal = self._report(PaymentState.NONE), reason
        self.on(PaymentFailed(reason))

    def _unexpected(self) -> None:
        """Go on after an error that no part of this program should raise: the payment may be under way."""
        if self.machine.phase is Phase.PAYING:
            self.track()

    def _report(self, state: PaymentState, end: PaymentSucceeded | None = None) -> PaymentReport:
        return PaymentReport(
            state=state,
            payment_hash=self._kept.payment_hash if self._kept else None,
            preimage=end.preimage if end else None,
            fee_msat=end.fee_msat if end else None,
        )

    def _end(self, ended: Ended) -> None:
        self.ended = ended
        self._timer.cancel()
        self._ended_at = int(self._parts.clock())
        self._on_end(self)
        if self.restored:
            # A caller may still come for the result, but few do: the operator's line waits no longer for one.
            self._claim.set(self._parts.clock() + self._parts.delays.claim_s)

    def release(self) -> None:
        """Forget what is stored of a job that has ended: its caller has the result, or no caller wants it.

        Until then a restart of this node fetches the result again.
        """
        ended = self.ended
        if ended is not None and self._stored:
            self._stored = False
            self._parts.tasks.once("end_purchase", partial(self._forget_stored, ended))

    async def _forget_stored(self, ended: Ended) -> None:
        async def step() -> None:
            await self._parts.store.end_purchase(
                self.job_id,
                outcome=how_ended(ended).value,
                paid=ended.paid,
                ended_at=self._ended_at,
                fee_msat=self.payment.fee_msat,
                preimage=self.payment.preimage,
            )

        await self._parts.tasks.persist("end_purchase", step, OSError)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
