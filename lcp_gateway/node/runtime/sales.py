"""The jobs that this node sells: which requests it takes, their invoices, and when it forgets them."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.judging import RequestRefused, SoldModel, judge_request
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import (
    AnyJobMessage,
    Cancel,
    Error,
    JobMessage,
    Manifest,
    Protocol,
    QuoteRequest,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
)
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.replay import ReplayWindow, is_expired
from lcp_gateway.node.lcp.selling import Selling
from lcp_gateway.node.lcp.selling_events import (
    InvoiceAccepted,
    InvoiceSettled,
    PeerBack,
    QuoteExpired,
    SalePhase,
    SaleTerms,
)
from lcp_gateway.node.lcp.table import write_message
from lcp_gateway.node.ports import InvoiceState, LightningAway, StoredSale
from lcp_gateway.node.runtime.observer import JobEnd, Role
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.peer import Peer
from lcp_gateway.node.runtime.peers import Peers
from lcp_gateway.node.runtime.sale import Sale, SaleHooks
from lcp_gateway.node.runtime.tally import Tally

_UNPAID: Final = frozenset({SalePhase.AWAITING_INPUT, SalePhase.PRICED, SalePhase.QUOTED})
_REPLAYS: Final = 16_384
_REFUSED: Final = 4_096
_INVOICE_GRACE_S: Final = 5
"""How long after its quote's end a job waits for the news of a payment that came in time."""

_MAX_REPEATS: Final = 16
"""How often a peer may ask for the quote and the result of one job again: each time all of the result is sent."""

_SENT_IS_SURE_S: Final = 30
"""A message that was handed over this long before a connection ended has arrived."""

_UNKNOWN_MANIFEST: Final = Limits()

_Key = tuple[str, bytes]


class Sales:
    """All jobs that are sold. ``models`` returns what a peer may buy; an empty mapping sells nothing to it."""

    def __init__(
        self,
        parts: NodeParts,
        peers: Peers,
        *,
        models: Callable[[str], Mapping[str, SoldModel]],
        sells: bool,
        terms: SaleTerms,
        new_id: Callable[[], bytes],
    ) -> None:
        self.follows = False
        """Whether this node follows its invoices: it sells, or has sold."""
        self.is_following = False
        """Whether settled invoices are reported now."""
        self._parts = parts
        self._peers = peers
        self._tally = Tally(parts.bounds)
        self._hooks = SaleHooks(
            may_run=lambda: not self._is_draining, watch=self._watch, moved=self._tally.moved, kept=self._kept_more
        )
        self._models = models
        self._sells = sells
        self._terms = terms
        self._new_id = new_id
        self._sales: dict[_Key, Sale] = {}
        self._by_hash: dict[bytes, Sale] = {}
        self._replays = ReplayWindow(max_entries=_REPLAYS)
        # Jobs that were refused: the rest of their messages gets no further error.
        self._refused: dict[_Key, None] = {}
        self._is_draining = False

    async def drain(self) -> None:
        """Take no new jobs and run none, and return once those that run are sent. A job that is paid meanwhile runs next time."""
        self._is_draining = True
        await asyncio.gather(*(sale.sent() for sale in tuple(self._sales.values())))

    async def start(self) -> None:
        """Go on with the jobs of an earlier run, and follow the invoices."""
        restored = [self._restore(stored) for stored in await self._parts.store.sales()]
        self.follows = self._sells or bool(restored)
        if not self.follows:
            # A Lightning node may let a buyer see no invoices.
            return
        self._parts.tasks.once("look_up", partial(self._look_up, restored))
        self._parts.tasks.keep("invoices", self._follow_invoices)

    def count(self, phase: SalePhase) -> int:
        """Return how many jobs are in a phase."""
        return self._tally.count(phase)

    def on_message(self, peer: Peer, protocol: Protocol, message: AnyJobMessage) -> None:
        """Take a message of a requester."""
        match message:
            case QuoteRequest():
                self._requested(peer, protocol, message)
            case StreamBegin(stream_kind=StreamKind.INPUT):
                self._begun(peer, protocol, message)
            case StreamChunk():
                # Their numbers tell repeats.
                sale = self._sales.get((peer.peer_id, message.job_id))
                if sale is not None:
                    sale.on(MessageCame(message))
            case StreamEnd() | Cancel():
                sale = self._sales.get((peer.peer_id, message.job_id))
                if sale is None:
                    self._parts.log.message_dropped(peer.peer_id, "unknown job")
                elif self._fresh(peer.peer_id, message):
                    sale.on(MessageCame(message))
            case _:
                # Errors and results about jobs that this node did not ask for.
                self._parts.log.message_dropped(peer.peer_id, "unknown job")

    def peer_ready(self, peer: Peer, protocol: Protocol) -> None:
        """Send again what may be lost, now that a peer is back."""
        for sale in self._of(peer.peer_id, protocol):
            lately = sale.handed_at >= peer.lost_at - _SENT_IS_SURE_S
            if lately or not sale.handed_at or sale.job_id in peer.unsent:
                sale.on(PeerBack())

    def manifest_came(self, peer: Peer, protocol: Protocol) -> None:
        """Take it that a peer has sent a manifest."""
        manifest = peer.links[protocol].manifest
        if manifest is not None:
            for sale in self._of(peer.peer_id, protocol):
                sale.machine.peer = manifest

    def _requested(self, peer: Peer, protocol: Protocol, request: QuoteRequest) -> None:
        sale = self._sales.get((peer.peer_id, request.job_id))
        if sale is not None and sale.machine.repeats(request):
            # What was checked when it came first ends no job now: it may be paid.
            if self._fresh(peer.peer_id, request) and sale.repeats < _MAX_REPEATS:
                sale.repeats += 1
                sale.on(MessageCame(request))
            return
        try:
            model = judge_request(protocol, request, self._models(peer.peer_id))
            if not self._fresh(peer.peer_id, request):
                return
            manifest = _manifest_of(peer, protocol)
            if sale is not None:
                sale.on(MessageCame(request))
                return
            self._check_bounds(peer.peer_id)
        except RequestRefused as refusal:
            self._refuse(peer, protocol, request, refusal)
            return
        self._refused.pop((peer.peer_id, request.job_id), None)
        expires_at = min(request.expiry, self._parts.clock() + self._terms.ttl_s)
        sold = self._models(peer.peer_id)[model]
        self._add(protocol, peer.peer_id, request, model, sold=sold, manifest=manifest, expires_at=expires_at)

    def _begun(self, peer: Peer, protocol: Protocol, begin: StreamBegin) -> None:
        key = (peer.peer_id, begin.job_id)
        if not self._models(peer.peer_id) or key in self._refused or not self._fresh(peer.peer_id, begin):
            return
        sale = self._sales.get(key)
        try:
            if sale is None:
                _manifest_of(peer, protocol)
                raise _unknown(protocol)
            if sale.phase is SalePhase.AWAITING_INPUT and begin.total_len is not None:
                self._tally.reserve(sale, min(begin.total_len, self._parts.limits.max_stream_bytes))
        except RequestRefused as refusal:
            if sale is not None:
                self._forget(sale)
            self._refuse(peer, protocol, begin, refusal)
            return
        sale.on(MessageCame(begin))

    def _watch(self, payment_hash: bytes, sale: Sale) -> None:
        self._by_hash[payment_hash] = sale

    def _kept_more(self, sale: Sale, size_bytes: int) -> None:
        sale.result_bytes += size_bytes
        self._tally.result_bytes += size_bytes
        while self._tally.result_bytes > self._parts.bounds.result_bytes and self._forget_oldest():
            pass

    def _add(
        self,
        protocol: Protocol,
        peer_id: str,
        request: QuoteRequest,
        model: str,
        *,
        sold: SoldModel,
        manifest: Manifest,
        expires_at: float,
        restored: StoredSale | None = None,
    ) -> Sale:
        machine = Selling(
            protocol,
            request,
            model=model,
            sold=sold,
            peer=manifest,
            own=self._parts.limits,
            terms=self._terms,
            inflight=lambda: self._tally.in_flight,
            new_id=self._new_id,
            kept=restored.kept if restored is not None else None,
            sent=restored.sent if restored is not None else (),
        )
        sale = self._sales[peer_id, request.job_id] = Sale(
            machine,
            self._parts,
            self._peers,
            self._hooks,
            protocol=protocol,
            peer_id=peer_id,
            job_id=request.job_id,
            model=model,
            expires_at=expires_at,
            restored=restored,
        )
        self._tally.add(sale)
        return sale

    def _check_bounds(self, peer_id: str) -> None:
        if self._is_draining:
            raise RequestRefused(ErrorCode.RATE_LIMITED, "the node stops")
        self._tally.check(peer_id)
        if len(self._sales) >= self._parts.bounds.sales and not self._forget_oldest():
            raise RequestRefused(ErrorCode.RATE_LIMITED, "too many jobs")

    def _refuse(self, peer: Peer, protocol: Protocol, asked: JobMessage, refusal: RequestRefused) -> None:
        key = (peer.peer_id, asked.job_id)
        self._parts.log.job_refused(peer.peer_id, protocol, refusal.code.name.lower())
        if key not in self._refused:
            self._parts.observer.job_ended(role=Role.SELLER, end=JobEnd.REFUSED, model="")
        if key in self._refused and not self._models(peer.peer_id):
            return
        self._refused[key] = None
        if len(self._refused) > _REFUSED:
            del self._refused[next(iter(self._refused))]
        if not asked.protocol_version > 0:
            return
        error = Error(
            protocol_version=asked.protocol_version,
            job_id=asked.job_id,
            msg_id=self._new_id(),
            expiry=asked.expiry or int(self._parts.clock()) + self._terms.ttl_s,
            code=refusal.code.number(protocol),
            message=refusal.message,
        )
        peer.answer(asked.job_id, Send(*write_message(protocol, error)))

    def _fresh(self, peer_id: str, message: JobMessage) -> bool:
        now = int(self._parts.clock())
        if is_expired(now, message.expiry):
            self._parts.log.message_dropped(peer_id, "expired")
            return False
        if not self._replays.is_new(now, peer_id, message.job_id, message.msg_id, message.expiry):
            self._parts.log.message_dropped(peer_id, "repeated")
            return False
        return True

    def _of(self, peer_id: str, protocol: Protocol) -> list[Sale]:
        return [one for one in self._sales.values() if one.peer_id == peer_id and one.protocol is protocol]

    def _restore(self, stored: StoredSale) -> Sale:
        kept = stored.kept
        sale = self._by_hash[kept.payment_hash] = self._add(
            stored.protocol,
            stored.peer_id,
            kept.request,
            kept.model,
            sold=SoldModel(TokenPrice(0, 0), 0),
            manifest=self._peers.kept(stored.peer_id, stored.protocol) or _manifest(stored.protocol),
            expires_at=kept.quote.quote_expiry,
            restored=stored,
        )
        return sale

    async def _look_up(self, restored: list[Sale]) -> None:
        """Learn what was paid while this node was not running."""
        for sale in restored:
            await self._parts.tasks.persist("look_up", partial(self._ask_invoice, sale), LightningAway)

    async def _ask_invoice(self, sale: Sale) -> None:
        state = await self._parts.invoices.state(sale.payment_hash)
        self._paid(sale, state)
        if state is InvoiceState.OPEN and not sale.is_runnable:
            sale.on(QuoteExpired())

    def _paid(self, sale: Sale, state: InvoiceState) -> None:
        match state:
            case InvoiceState.SETTLED:
                sale.on(InvoiceSettled())
            case InvoiceState.ACCEPTED:
                sale.on(InvoiceAccepted())
            case _:
                pass

    async def _follow_invoices(self) -> None:
        try:
            await self._follow()
        finally:
            self.is_following = False

    async def _follow(self) -> None:
        store = self._parts.store
        # An index counts for the Lightning node that gave it.
        node_id, _ = await self._peers.identity()
        index = await store.settle_index(node_id)
        async with contextlib.aclosing(self._parts.invoices.paid(index)) as events:
            self.is_following = True
            async for event in events:
                sale = self._by_hash.get(event.payment_hash)
                if sale is not None:
                    self._paid(sale, event.state)
                if event.settle_index is not None and event.settle_index > index:
                    index = event.settle_index
                    await store.keep_settle_index(node_id, index)

    async def sweep(self) -> None:
        """End quotes that were not paid in time, and forget jobs whose time is over."""
        now = self._parts.clock()
        for sale in list(self._sales.values()):
            if sale.phase in _UNPAID and now > sale.expires_at + _INVOICE_GRACE_S:
                await self._expire(sale)
            elif sale.phase in {SalePhase.DELIVERED, SalePhase.ENDED}:
                unpaid = not sale.machine.paid
                if sale.is_idle and now > sale.expires_at + (
                    _INVOICE_GRACE_S if unpaid else self._parts.delays.keep_sale_s
                ):
                    await self._end(sale)

    async def _end(self, sale: Sale) -> None:
        try:
            await sale.forget_stored()
        except OSError as error:
            # It is forgotten at a later time; the others do not wait for it.
            self._parts.log.problem("forget_sale", error)
            return
        self._forget(sale)

    async def _expire(self, sale: Sale) -> None:
        if sale.phase is SalePhase.QUOTED:
            try:
                await self._ask_invoice(sale)
            except LightningAway:
                # Whether it is paid is not known: it is looked at again.
                return
        sale.on(QuoteExpired())

    def _forget(self, sale: Sale) -> None:
        sale.stop()
        if self._sales.pop((sale.peer_id, sale.job_id), None) is not None:
            self._tally.remove(sale)
        if self._by_hash.get(sale.payment_hash) is sale:
            del self._by_hash[sale.payment_hash]

    def _forget_oldest(self) -> bool:
        """Make room: the result that was delivered first cannot be sent again any more."""
        for sale in self._sales.values():
            if sale.phase in {SalePhase.DELIVERED, SalePhase.ENDED} and sale.is_idle:
                self._forget(sale)
                self._parts.tasks.once("forget_sale", partial(self._end, sale))
                return True
        return False


def _manifest_of(peer: Peer, protocol: Protocol) -> Manifest:
    manifest = peer.links[protocol].manifest
    if manifest is None:
        raise RequestRefused(ErrorCode.INVALID_STATE, "manifest not exchanged")
    return manifest


def _unknown(protocol: Protocol) -> RequestRefused:
    name = "quote_request" if protocol is Protocol.V02 else "call"
    return RequestRefused(ErrorCode.INVALID_STATE, f"no {name} for job")


def _manifest(protocol: Protocol) -> Manifest:
    limits = _UNKNOWN_MANIFEST
    return Manifest(
        protocol_version=protocol.value,
        max_payload_bytes=limits.max_payload_bytes,
        max_stream_bytes=limits.max_stream_bytes,
        max_job_bytes=limits.max_job_bytes,
    )
