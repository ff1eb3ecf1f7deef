"""A node of the Lightning Compute Protocol: it buys and sells jobs over the ports of ``node/ports.py``."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

from lcp_gateway.node.lcp.buying import Phase
from lcp_gateway.node.lcp.buying_events import Order
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import (
    AnyJobMessage,
    Error,
    Manifest,
    Protocol,
    QuoteResponse,
    Result,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
)
from lcp_gateway.node.lcp.selling_events import SalePhase, SaleTerms
from lcp_gateway.node.ports import Compute, Invoices, LightningAway, Payments, Store, Transport
from lcp_gateway.node.runtime import statuses
from lcp_gateway.node.runtime.bounds import Bounds, Delays, PaymentLimits
from lcp_gateway.node.runtime.calls import LocalInfo, PaymentReport, PurchaseItem, ReadyPeer
from lcp_gateway.node.runtime.connector import Connector
from lcp_gateway.node.runtime.job_ids import random_id
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.observer import NodeFigures, NodeObserver, Role, Unobserved
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.peer import Peer
from lcp_gateway.node.runtime.peers import Peers
from lcp_gateway.node.runtime.purchases import Purchases, seller_manifest
from lcp_gateway.node.runtime.sales import Sales
from lcp_gateway.node.runtime.tasks import Tasks

_TERMS: Final = SaleTerms()
_LIMITS: Final = Limits()
_BOUNDS: Final = Bounds()
_PAYMENT_LIMITS: Final = PaymentLimits()
_DELAYS: Final = Delays()
_NO_PEERS: Final[Mapping[str, str]] = MappingProxyType({})


class LcpNode:
    """A node; it implements ``NodeCalls``.

    ``models`` is what it sells, none to sell nothing; then no ``compute`` is needed. Where it does not buy, it shows no peers, and
    purchases of an earlier run wait for one that does. ``allowed`` are the ids of the peers that
    may buy, None for all of them but those of ``denied``. ``connect_with`` names peers that the Lightning node is kept connected
    with (id: "host:port"). ``clock`` returns Unix seconds, ``ids`` 32 bytes for every id, for a replay; without it ids are random.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        payments: Payments,
        invoices: Invoices,
        store: Store,
        compute: Compute | None = None,
        models: Mapping[str, SoldModel] | None = None,
        buys: bool = True,
        terms: SaleTerms = _TERMS,
        allowed: Collection[str] | None = None,
        denied: Collection[str] = (),
        connect_with: Mapping[str, str] = _NO_PEERS,
        limits: Limits = _LIMITS,
        bounds: Bounds = _BOUNDS,
        payment_limits: PaymentLimits = _PAYMENT_LIMITS,
        delays: Delays = _DELAYS,
        observer: NodeObserver | None = None,
        log: NodeLog | None = None,
        clock: Callable[[], float] = time.time,
        ids: Callable[[], bytes] | None = None,
    ) -> None:
        if models and compute is None:
            raise ValueError("a node that sells models needs a backend to compute them")
        self._models = dict(models or {})
        self._buys = buys
        self._allowed = None if allowed is None else frozenset(allowed)
        self._denied = frozenset(denied)
        self._limits = limits
        self._sweep_s = delays.sweep_s
        # Peers from which this node buys: lcpd-grpcd refuses what a requester's own manifest does not list.
        self._bought_from: set[str] = set()
        self._log = log or NodeLog()
        self._tasks = Tasks(self._log)
        parts = NodeParts(
            transport=transport,
            payments=payments,
            invoices=invoices,
            store=store,
            compute=compute,
            tasks=self._tasks,
            observer=observer or Unobserved(),
            log=self._log,
            limits=limits,
            bounds=bounds,
            delays=delays,
            clock=clock,
        )
        self._peers = Peers(
            parts,
            own=self._own_manifest,
            on_message=self._on_message,
            on_link=self._on_link,
            on_restarted=lambda peer, protocol: self._purchases.peer_restarted(peer.peer_id, protocol),
            on_gone=lambda peer: self._purchases.peer_gone(peer.peer_id),
            on_lost=lambda peer, job_id: self._purchases.send_lost(peer.peer_id, job_id),
        )
        self._connector = Connector(
            connect_with, transport=transport, tasks=self._tasks, log=self._log, is_missing=self._peers.is_missing
        )
        self._purchases = Purchases(
            parts, self._peers, limits=payment_limits, new_id=ids, before_buying=self._before_buying
        )
        self._sales = Sales(
            parts, self._peers, models=self._sold_to, sells=bool(self._models), terms=terms, new_id=ids or random_id
        )

    async def start(self) -> None:
        """Take up what an earlier run left, and begin to listen; the Lightning node may still be away.

        Raises:
            OSError: the store cannot be read.
        """
        await self._peers.load()
        if self._buys:
            await self._purchases.start()
        await self._sales.start()
        self._tasks.keep("sweep", self._sweep)
        self._peers.start()
        self._connector.start()

    async def drain(self) -> None:
        """Sell no more, and return once the results of running jobs are sent: a stream cannot go on from its middle later."""
        await self._sales.drain()

    def fail_callers(self) -> None:
        """Fail the callers that wait with UNAVAILABLE and what is known of their payment; no further call gets a result.

        For a stop: calls that are cut off afterwards cancel no job at its seller, and the next run goes on with what is paid.
        """
        self._purchases.stop()

    async def stop(self) -> None:
        """End all tasks. Callers that wait get UNAVAILABLE; payments go on in the Lightning node, and the next run sees to them."""
        self.fail_callers()
        self._peers.stop()
        await self._tasks.close()

    def ready_peers(self, protocol: Protocol) -> list[ReadyPeer]:
        """Return the peers that are ready in a version, by id."""
        if not self._buys:
            return []
        return [
            ReadyPeer(peer.peer_id, peer.address, manifest)
            for peer in self._peers.ready(protocol)
            if (manifest := peer.links[protocol].manifest) is not None
        ]

    async def local_info(self, protocol: Protocol) -> LocalInfo:
        """Return this node's id and manifest; see ``NodeCalls``."""
        try:
            node_id, _ = await self._peers.identity()
        except LightningAway as error:
            raise statuses.unavailable(f"GetInfo: {error}") from None
        return LocalInfo(node_id, own_manifest(protocol, self._limits, self._models), self._limits)

    async def request_quote(self, protocol: Protocol, peer_id: str, order: Order) -> QuoteResponse:
        """Ask a peer for a quote; see ``NodeCalls``."""
        if not self._buys:
            raise statuses.refused("this node does not buy (buy.enabled)")
        peer = self._peers.get(peer_id)
        if peer is None:
            raise statuses.not_found("peer")
        seller_manifest(peer, protocol)
        return await self._purchases.quote(protocol, peer, order)

    def accept(
        self, peer_id: str, job_id: bytes, *, max_price_msat: int | None = None, fee_limit_msat: int | None = None
    ) -> AsyncGenerator[PurchaseItem, None]:
        """Pay a quote, at most once, and return its result as it comes; the iterator raises ``CallFailed``."""
        return self._purchases.accept(peer_id, job_id, max_price_msat, fee_limit_msat)

    async def payment(self, job_id: bytes, payment_hash: bytes) -> PaymentReport:
        """Return what is known of a purchase's payment; see ``NodeCalls``."""
        return await self._purchases.payment(job_id, payment_hash)

    def cancel(self, peer_id: str, job_id: bytes, reason: str) -> None:
        """Tell a peer that a job is not wanted any more; see ``NodeCalls``."""
        peer = self._peers.get(peer_id)
        if peer is None:
            raise statuses.not_found("peer")
        if not peer.connected:
            raise statuses.refused("peer is not connected with custom messages enabled")
        protocol = self._purchases.protocol_of(peer_id, job_id)
        if protocol is None:
            spoken = [one for one in Protocol if peer.links[one].manifest is not None]
            protocol = spoken[0] if spoken else Protocol.V02
        self._purchases.cancel(peer, protocol, job_id, reason)

    def figures(self) -> NodeFigures:
        """Return what is under way at this moment."""
        waiting = []
        links: Counter[tuple[str, int]] = Counter()
        for peer in self._peers.all():
            waiting.append(peer.outbox.waiting)
            for protocol, link in peer.links.items():
                if link.connected:
                    links["ready" if link.ready else "connected", protocol.value] += 1
        return NodeFigures(
            lightning_up=self._peers.is_listening,
            invoices_up=self._sales.is_following if self._sales.follows else None,
            links=links,
            quoted={Role.BUYER: self._purchases.count(Phase.QUOTED), Role.SELLER: self._sales.count(SalePhase.QUOTED)},
            running={
                Role.BUYER: self._purchases.count(Phase.PAYING, Phase.RECEIVING),
                Role.SELLER: self._sales.count(SalePhase.RUNNING),
            },
            queued_messages=sum(messages for messages, _ in waiting),
            queued_bytes=sum(size for _, size in waiting),
            deepest_queue_messages=max((messages for messages, _ in waiting), default=0),
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            self._purchases.sweep()
            await self._sales.sweep()

    def _sold_to(self, peer_id: str) -> Mapping[str, SoldModel]:
        may_buy = peer_id not in self._denied and (self._allowed is None or peer_id in self._allowed)
        return self._models if may_buy else {}

    def _own_manifest(self, peer_id: str, protocol: Protocol) -> Manifest:
        buys = protocol is Protocol.V02 and peer_id in self._bought_from
        return own_manifest(protocol, self._limits, () if buys else self._sold_to(peer_id))

    def _before_buying(self, peer: Peer, protocol: Protocol) -> None:
        if protocol is Protocol.V02 and self._models and peer.peer_id not in self._bought_from:
            self._bought_from.add(peer.peer_id)
            peer.show(protocol)

    def _on_message(self, peer: Peer, protocol: Protocol, message: AnyJobMessage) -> None:
        match message:
            case StreamBegin(stream_kind=StreamKind.RESULT) | QuoteResponse() | Result() | Error():
                if not self._purchases.on_message(peer.peer_id, message):
                    # Among them each error of a requester about a job that is sold to it, which lcpd-grpcd sends at the end.
                    self._log.message_dropped(peer.peer_id, "unknown job")
            case StreamChunk() | StreamEnd():
                # Neither says whose stream it is of.
                if not self._purchases.on_message(peer.peer_id, message):
                    self._sales.on_message(peer, protocol, message)
            case _:
                self._sales.on_message(peer, protocol, message)

    def _on_link(self, peer: Peer, protocol: Protocol, became_ready: bool) -> None:
        self._sales.manifest_came(peer, protocol)
        if became_ready:
            self._purchases.peer_ready(peer.peer_id)
            self._sales.peer_ready(peer, protocol)
