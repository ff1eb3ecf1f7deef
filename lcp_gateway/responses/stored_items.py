"""Where stored items are: in this process's memory, or where all gateways and workers that share a Redis find them."""

from collections.abc import Sequence
from typing import Protocol

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.responses.items import Item
from lcp_gateway.responses.store import ResponseStore, StoreLimits


class StoreUnavailable(Refused):
    """The items cannot be reached right now: the Redis that holds them is away."""

    code = "store_unavailable"

    def __init__(self) -> None:
        super().__init__("stored responses cannot be reached right now; nothing was paid")


class StoredItems(Protocol):
    """The stored items of each owner. Every method but ``limits`` may raise ``StoreUnavailable``."""

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        ...

    async def put(self, owner: str, item: Item) -> bool:
        """Store an item as the owner's newest, instead of one with its kind and id; return whether it is stored."""
        ...

    async def get(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Return an item; None where the owner has none of that kind and id, or it has expired."""
        ...

    async def remove(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Remove an item and return it, as ``get`` does."""
        ...

    async def replace(self, owner: str, item: Item) -> bool:
        """Replace the item of the same kind and id, keeping its place and age; return whether it is stored."""
        ...

    async def items(self, owner: str, kind: str) -> Sequence[Item]:
        """Return the owner's items of a kind, the oldest first; perhaps without their bytes, which ``get`` returns."""
        ...


class MemoryItems:
    """The items of this process."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        return self._store.limits

    async def put(self, owner: str, item: Item) -> bool:
        """Store an item."""
        return self._store.put(owner, item)

    async def get(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Return an item."""
        return self._store.get(owner, kind, item_id)

    async def remove(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Remove an item and return it."""
        return self._store.remove(owner, kind, item_id)

    async def replace(self, owner: str, item: Item) -> bool:
        """Replace an item."""
        return self._store.replace(owner, item)

    async def items(self, owner: str, kind: str) -> Sequence[Item]:
        """Return the owner's items of a kind."""
        return self._store.items(owner, kind)
