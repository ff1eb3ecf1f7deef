"""The store of responses: items of each owner, in memory only, bounded by count, bytes and age."""

import enum
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lcp_gateway.responses.items import Item

# The memory of an item besides its byte strings, measured with the headers, metadata and ids of an ordinary response: the
# item itself, its places in the store's tables, and the allocator's overhead.
ITEM_BYTES = 2_048
# The memory of a byte string besides its bytes: its head, the allocator's rounding, and its places in two tables.
SEGMENT_BYTES = 192
# The memory of each reference to one: its place in the item's tuple, and in the store's.
HOLD_BYTES = 16


class MemoryUsage:
    """The memory of some items: each item, and each byte string once, however many items refer to it."""

    __slots__ = ("_holds", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        # By identity. The items keep the strings alive, so no other string can have the same.
        self._holds: dict[int, int] = {}

    def add(self, segments: tuple[bytes, ...]) -> None:
        """Add an item."""
        self.bytes += ITEM_BYTES + HOLD_BYTES * len(segments)
        for segment in segments:
            holds = self._holds.get(id(segment), 0)
            if not holds:
                self.bytes += SEGMENT_BYTES + len(segment)
            self._holds[id(segment)] = holds + 1

    def drop(self, segments: tuple[bytes, ...]) -> None:
        """Subtract an item."""
        self.bytes -= ITEM_BYTES + HOLD_BYTES * len(segments)
        for segment in segments:
            holds = self._holds[id(segment)] - 1
            if holds:
                self._holds[id(segment)] = holds
            else:
                del self._holds[id(segment)]
                self.bytes -= SEGMENT_BYTES + len(segment)


Key = tuple[str, str, str]
"""Owner, kind and id."""


class EvictionReason(enum.StrEnum):
    """Why the store evicted an item."""

    COUNT = "count"
    BYTES = "bytes"
    AGE = "age"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits: items of one owner (0 turns the store off), bytes of all together, age in seconds."""

    items_per_owner: int
    bytes_in_all: int
    keep_s: float


class ResponseStore:
    """Keeps items; the oldest are evicted first.

    An owner sees only its own, and looking up another's id takes the same work as an unknown one. An owner with more than a
    fair share of the bytes makes room from its own items. For one thread, and never waits.
    """

    def __init__(
        self,
        limits: StoreLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int, int], None] = lambda _items, _bytes: None,
        on_removed: Callable[[EvictionReason], None] = lambda _why: None,
    ) -> None:
        """``on_change`` is called with the numbers of items and bytes, ``on_removed`` with the reason of each eviction."""
        self._limits = limits
        self._clock = clock
        self._on_change = on_change
        self._on_removed = on_removed
        # In the order of the puts, as are the owners' tables.
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._owners: dict[str, _Owned] = {}
        self._all = MemoryUsage()

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        return self._limits

    @property
    def held_bytes(self) -> int:
        """The memory of all items; shared strings count once."""
        return self._all.bytes

    def __len__(self) -> int:
        """Count the items, expired ones that are not yet purged included."""
        return len(self._held)

    def use(self, limits: StoreLimits) -> None:
        """Apply other limits, and evict items above them."""
        with self._changing():
            self._limits = limits
            self._evict_expired()
            for owner in list(self._owners):
                self._evict_surplus(owner)
            while self._all.bytes > limits.bytes_in_all:
                self._evict(next(iter(self._held)), EvictionReason.BYTES)

    def purge(self) -> None:
        """Evict expired items, which otherwise waits for the next put."""
        with self._changing():
            self._evict_expired()

    def put(self, owner: str, item: Item) -> bool:
        """Store an item as the owner's newest, instead of one with its kind and id.

        Returns whether it is stored: not if the store is off, nor if it alone is over the budget.
        """
        with self._changing():
            key = (owner, item.kind, item.id)
            self._take_out(key)
            self._evict_expired()
            held = _Held(item, tuple(item.segments()), self._clock())
            if not (self._limits.items_per_owner > 0 and self._could_fit(held)):
                return False
            self._held[key] = held
            self._owners.setdefault(owner, _Owned()).add(key, held.segments)
            self._all.add(held.segments)
            self._evict_surplus(owner)
            self._make_room(owner)
            return True

    def get(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Return an item; None where the owner has none of that kind and id, or it has expired."""
        key = (owner, kind, item_id)
        held = self._held.get(key)
        if held is None:
            return None
        if self._has_expired(held):
            with self._changing():
                self._evict(key, EvictionReason.AGE)
            return None
        return held.item

    def remove(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Remove an item and return it, as ``get`` does."""
        item = self.get(owner, kind, item_id)
        if item is not None:
            with self._changing():
                self._take_out((owner, kind, item_id))
        return item

    def replace(self, owner: str, item: Item) -> bool:
        """Replace the item of the same kind and id, keeping its place and age.

        Returns whether it is stored: not if there was none, nor if it does not fit.
        """
        key = (owner, item.kind, item.id)
        if self.get(*key) is None:
            return False
        with self._changing():
            before = self._held[key]
            after = _Held(item, tuple(item.segments()), before.put_at)
            if not self._could_fit(after):
                self._evict(key, EvictionReason.BYTES)
                return False
            self._held[key] = after
            # The new item first: strings that both have stay counted.
            for usage in (self._all, self._owners[owner].usage):
                usage.add(after.segments)
                usage.drop(before.segments)
            self._make_room(owner)
            return key in self._held

    def items(self, owner: str, kind: str) -> list[Item]:
        """Return the owner's items of a kind, the oldest first."""
        owned = self._owners.get(owner)
        if owned is None:
            return []
        found = ((key, self._held[key]) for key in owned.keys if key[1] == kind)
        return [held.item for _, held in found if not self._has_expired(held)]

    def _has_expired(self, held: "_Held") -> bool:
        return self._clock() - held.put_at >= self._limits.keep_s

    def _could_fit(self, held: "_Held") -> bool:
        alone = MemoryUsage()
        alone.add(held.segments)
        return alone.bytes <= self._limits.bytes_in_all

    def _evict_expired(self) -> None:
        while self._held:
            key, held = next(iter(self._held.items()))
            if not self._has_expired(held):
                return
            self._evict(key, EvictionReason.AGE)

    def _evict_surplus(self, owner: str) -> None:
        keys = self._owners[owner].keys
        while len(keys) > self._limits.items_per_owner:
            self._evict(next(iter(keys)), EvictionReason.COUNT)

    def _make_room(self, owner: str) -> None:
        """Evict items until all fit: the owner's oldest while it has more than its share, else the oldest of all."""
        budget = self._limits.bytes_in_all
        while self._all.bytes > budget:
            owned = self._owners.get(owner)
            # Its newest item may itself be larger than the share.
            is_greedy = owned is not None and len(owned.keys) > 1 and owned.usage.bytes > budget / len(self._owners)
            keys = owned.keys if owned is not None and is_greedy else self._held
            self._evict(next(iter(keys)), EvictionReason.BYTES)

    def _evict(self, key: Key, why: EvictionReason) -> None:
        self._take_out(key)
        self._on_removed(why)

    def _take_out(self, key: Key) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return
        owned = self._owners[key[0]]
        owned.remove(key, held.segments)
        if not owned.keys:
            del self._owners[key[0]]
        self._all.drop(held.segments)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Report the new numbers of items and bytes, if they changed."""
        before = len(self._held), self._all.bytes
        try:
            yield
        finally:
            after = len(self._held), self._all.bytes
            if after != before:
                self._on_change(*after)


@dataclass(frozen=True, slots=True)
class _Held:
    """An item with its segments as of the put, so that the same memory is added and subtracted."""

    item: Item
    segments: tuple[bytes, ...]
    put_at: float


@dataclass(slots=True)
class _Owned:
    """The items of one owner, the oldest first."""

    keys: OrderedDict[Key, None] = field(default_factory=OrderedDict)
    usage: MemoryUsage = field(default_factory=MemoryUsage)

    def add(self, key: Key, segments: tuple[bytes, ...]) -> None:
        self.keys[key] = None
        self.usage.add(segments)

    def remove(self, key: Key, segments: tuple[bytes, ...]) -> None:
        del self.keys[key]
        self.usage.drop(segments)
