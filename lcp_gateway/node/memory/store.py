"""A store in memory: it outlives a node that restarts in the same process, and not the process."""

import os
from dataclasses import replace

from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.lcp.messages import Manifest, Protocol
from lcp_gateway.node.ports import EndedPurchase, PaymentHashUsed, StoredPurchase, StoredSale


class MemoryStore:
    """The store port, with no disk behind it. ``ended`` counts the lines of sales, by outcome.

    How the last ``history_lines`` purchases ended is kept.
    """

    keeps_jobs = True

    def __init__(self, *, history_lines: int = 10_000) -> None:
        self.ended: dict[str, int] = {}
        self._manifests: dict[tuple[str, Protocol], Manifest] = {}
        self._purchases: dict[bytes, StoredPurchase] = {}
        self._ended_purchases: dict[bytes, EndedPurchase] = {}
        self._history_lines = history_lines
        self._paid_hashes: dict[bytes, bytes] = {}
        self._forgotten_until = 0
        self._job_key = os.urandom(32)
        self._sales: dict[tuple[str, bytes], StoredSale] = {}
        self._lined: set[tuple[str, bytes]] = set()
        self._settle_indexes: dict[str, int] = {}

    async def manifests(self) -> dict[tuple[str, Protocol], Manifest]:
        """Return the last manifest of each peer in each version."""
        return dict(self._manifests)

    async def keep_manifest(self, peer_id: str, protocol: Protocol, manifest: Manifest | None) -> None:
        """Keep a peer's manifest; None removes it."""
        if manifest is None:
            self._manifests.pop((peer_id, protocol), None)
        else:
            self._manifests[peer_id, protocol] = manifest

    async def keep_purchase(self, purchase: StoredPurchase) -> None:
        """Keep a purchase, but for its request's bytes."""
        job_id, payment_hash = purchase.kept.quote.job_id, purchase.kept.payment_hash
        if await self.is_hash_used(payment_hash, but_for=job_id):
            raise PaymentHashUsed
        order = replace(purchase.order, request=b"")
        self._purchases[job_id] = replace(purchase, order=order)

    async def end_purchase(
        self,
        job_id: bytes,
        *,
        outcome: str,
        paid: bool,
        ended_at: int,
        fee_msat: int | None = None,
        preimage: bytes | None = None,
    ) -> None:
        """Remove a purchase, and keep how it ended."""
        purchase = self._purchases.pop(job_id, None)
        if purchase is None:
            return
        payment_hash = purchase.kept.payment_hash
        self._ended_purchases[job_id] = EndedPurchase(
            payment_hash=payment_hash, paid=paid, fee_msat=fee_msat, preimage=preimage
        )
        if paid:
            self._paid_hashes[payment_hash] = job_id
        if len(self._ended_purchases) > self._history_lines:
            forgotten = self._ended_purchases.pop(next(iter(self._ended_purchases)))
            if forgotten.paid:
                self._paid_hashes.pop(forgotten.payment_hash, None)
            # The one that is forgotten ended before this one.
            self._forgotten_until = ended_at

    async def ended_purchase(self, job_id: bytes) -> EndedPurchase | None:
        """Return how a purchase ended, one of the last."""
        return self._ended_purchases.get(job_id)

    async def is_hash_used(self, payment_hash: bytes, *, but_for: bytes) -> bool:
        """Return whether another purchase has a payment hash."""
        is_open = any(one.kept.payment_hash == payment_hash for key, one in self._purchases.items() if key != but_for)
        return is_open or self._paid_hashes.get(payment_hash, but_for) != but_for

    async def forgotten_until(self) -> int:
        """Return the time up to which ended purchases may be forgotten."""
        return self._forgotten_until

    async def job_key(self) -> bytes:
        """Return random bytes that are always the same."""
        return self._job_key

    async def purchases(self) -> list[StoredPurchase]:
        """Return the purchases that have not ended."""
        return list(self._purchases.values())

    async def keep_sale(self, sale: StoredSale) -> None:
        """Keep a sale."""
        key = (sale.peer_id, sale.kept.request.job_id)
        self._sales[key] = sale
        self._lined.discard(key)

    async def keep_sent(self, peer_id: str, job_id: bytes, messages: tuple[Send, ...]) -> None:
        """Append messages of a sale's result; without effect for a sale that is not kept."""
        sale = self._sales.get((peer_id, job_id))
        if sale is not None:
            self._sales[peer_id, job_id] = replace(sale, sent=(*sale.sent, *messages))

    async def end_sale(
        self,
        peer_id: str,
        job_id: bytes,
        *,
        outcome: str,
        price_msat: int,
        paid: bool,
        line: bool,
        model: str,
        ended_at: int,
    ) -> None:
        """Count the outcome of a sale that gets a line."""
        key = (peer_id, job_id)
        if line and key in self._sales and key not in self._lined:
            self._lined.add(key)
            self.ended[outcome] = self.ended.get(outcome, 0) + 1

    async def forget_sale(self, peer_id: str, job_id: bytes) -> None:
        """Remove a sale."""
        self._sales.pop((peer_id, job_id), None)
        self._lined.discard((peer_id, job_id))

    async def sales(self) -> list[StoredSale]:
        """Return the sales that are kept, ended or not."""
        return list(self._sales.values())

    async def settle_index(self, node_id: str) -> int:
        """Return the index of the last settled invoice that was taken in."""
        return self._settle_indexes.get(node_id, 0)

    async def keep_settle_index(self, node_id: str, index: int) -> None:
        """Keep that index."""
        self._settle_indexes[node_id] = index


class NoStore(MemoryStore):
    """A store that keeps no jobs: for a node whose jobs end with its process."""

    keeps_jobs = False

    async def keep_purchase(self, purchase: StoredPurchase) -> None:
        """Keep nothing."""

    async def keep_sale(self, sale: StoredSale) -> None:
        """Keep nothing."""
