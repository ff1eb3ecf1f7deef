"""The store: what is kept for each owner, in memory only, within a count, a budget of bytes and an age."""

import enum
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

# What an item costs beside its byte strings, measured with the headers, the metadata and the ids of an ordinary response:
# the item itself, its places in the store's tables, and the allocator's own share.
ITEM_BYTES = 2_048
# What a byte string costs beside its bytes: its head, what malloc rounds up, and its places in two tables.
SEGMENT_BYTES = 192
# What each hold on one costs: its place in the item's tuple, and in the store's.
HOLD_BYTES = 16


class MemoryUsage:
    """What some items cost: each of them, and each byte string once, however many hold it."""

    __slots__ = ("_holds", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        # By identity. The items keep the strings alive, so that no other can get the same.
        self._holds: dict[int, int] = {}

    def add(self, segments: tuple[bytes, ...]) -> None:
        """Count an item in."""
        self.bytes += ITEM_BYTES + HOLD_BYTES * len(segments)
        for segment in segments:
            holds = self._holds.get(id(segment), 0)
            if not holds:
                self.bytes += SEGMENT_BYTES + len(segment)
            self._holds[id(segment)] = holds + 1

    def drop(self, segments: tuple[bytes, ...]) -> None:
        """Count an item out."""
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


class Storable(Protocol):
    """What the store needs of an item. It never changes; a changed one is another item."""

    @property
    def kind(self) -> str:
        """The family that its id belongs to."""
        ...

    @property
    def id(self) -> str:
        """Its name among its owner's of that kind."""
        ...

    def segments(self) -> Iterable[bytes]:
        """Give the byte strings that it holds on to; those that it shares with others are the same objects."""
        ...


class EvictionReason(enum.StrEnum):
    """Why the store let an item go."""

    COUNT = "count"
    BYTES = "bytes"
    AGE = "age"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much is kept: items of one owner (0 keeps nothing), bytes of all together, seconds at most."""

    items_per_owner: int
    bytes_in_all: int
    keep_s: float


ItemT = TypeVar("ItemT", bound=Storable)


class ResponseStore(Generic[ItemT]):
    """Keeps items; the oldest go first.

    An owner sees only its own, and to look for another's costs the same work as to look for what nobody has. Whoever
    holds more than a fair share of the bytes makes room from its own. For one thread, and never waits.
    """

    def __init__(
        self,
        limits: StoreLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int, int], None] = lambda _items, _bytes: None,
        on_removed: Callable[[EvictionReason], None] = lambda _why: None,
    ) -> None:
        """``on_change`` hears how many items and bytes are held now, ``on_removed`` of each that the store itself let go."""
        self._limits = limits
        self._clock = clock
        self._on_change = on_change
        self._on_removed = on_removed
        # By the time of the put, as the owners' own tables are too.
        self._held: OrderedDict[Key, _Held[ItemT]] = OrderedDict()
        self._owners: dict[str, _Owned] = {}
        self._all = MemoryUsage()

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        return self._limits

    @property
    def held_bytes(self) -> int:
        """What everything that is held costs; what is shared counts once."""
        return self._all.bytes

    def __len__(self) -> int:
        """Count what is held, with what is too old and not yet purged."""
        return len(self._held)

    def use(self, limits: StoreLimits) -> None:
        """Take other limits, and let go what is over them."""
        with self._changing():
            self._limits = limits
            self._drop_old()
            for owner in list(self._owners):
                self._drop_surplus(owner)
            while self._all.bytes > limits.bytes_in_all:
                self._let_go(next(iter(self._held)), EvictionReason.BYTES)

    def purge(self) -> None:
        """Let go what is too old, which else waits for the next put."""
        with self._changing():
            self._drop_old()

    def put(self, owner: str, item: ItemT) -> bool:
        """Keep an item as the owner's newest, instead of one with its kind and id.

        Tells whether it is kept: not where nothing is, and not where it alone is over the budget.
        """
        with self._changing():
            key = (owner, item.kind, item.id)
            self._take_out(key)
            self._drop_old()
            held = _Held(item, tuple(item.segments()), self._clock())
            if not (self._limits.items_per_owner > 0 and self._could_fit(held)):
                return False
            self._held[key] = held
            self._owned(owner).add(key, held.segments)
            self._all.add(held.segments)
            self._drop_surplus(owner)
            self._make_room(owner)
            return True

    def get(self, owner: str, kind: str, item_id: str) -> ItemT | None:
        """Give an item; None where the owner has none of that kind and id, or it is too old."""
        key = (owner, kind, item_id)
        held = self._held.get(key)
        if held is None:
            return None
        if self._is_old(held):
            with self._changing():
                self._let_go(key, EvictionReason.AGE)
            return None
        return held.item

    def remove(self, owner: str, kind: str, item_id: str) -> ItemT | None:
        """Take an item out and give it, as ``get`` does."""
        item = self.get(owner, kind, item_id)
        if item is not None:
            with self._changing():
                self._take_out((owner, kind, item_id))
        return item

    def replace(self, owner: str, item: ItemT) -> bool:
        """Put a changed item where the one of its kind and id is, in its place and with its age.

        Tells whether it is kept: not where there is none, and not where it does not fit.
        """
        key = (owner, item.kind, item.id)
        if self.get(*key) is None:
            return False
        with self._changing():
            before = self._held[key]
            after = _Held(item, tuple(item.segments()), before.put_at)
            if not self._could_fit(after):
                self._let_go(key, EvictionReason.BYTES)
                return False
            self._held[key] = after
            # The new ones first: what both hold stays counted.
            for tally in (self._all, self._owners[owner].tally):
                tally.add(after.segments)
                tally.drop(before.segments)
            self._make_room(owner)
            return key in self._held

    def items(self, owner: str, kind: str) -> list[ItemT]:
        """Give the owner's items of a kind, the oldest first."""
        owned = self._owners.get(owner)
        if owned is None:
            return []
        found = ((key, self._held[key]) for key in owned.keys if key[1] == kind)
        return [held.item for _, held in found if not self._is_old(held)]

    def _is_old(self, held: "_Held[ItemT]") -> bool:
        return self._clock() - held.put_at >= self._limits.keep_s

    def _could_fit(self, held: "_Held[ItemT]") -> bool:
        alone = MemoryUsage()
        alone.add(held.segments)
        return alone.bytes <= self._limits.bytes_in_all

    def _owned(self, owner: str) -> "_Owned":
        return self._owners.setdefault(owner, _Owned())

    def _drop_old(self) -> None:
        while self._held:
            key, held = next(iter(self._held.items()))
            if not self._is_old(held):
                return
            self._let_go(key, EvictionReason.AGE)

    def _drop_surplus(self, owner: str) -> None:
        keys = self._owners[owner].keys
        while len(keys) > self._limits.items_per_owner:
            self._let_go(next(iter(keys)), EvictionReason.COUNT)

    def _make_room(self, owner: str) -> None:
        """Let items go until all fit: the owner's oldest while it holds more than its share, else the oldest of all."""
        budget = self._limits.bytes_in_all
        while self._all.bytes > budget:
            owned = self._owners.get(owner)
            # Its last one has just come, and may be larger than the share.
            is_greedy = (
                owned is not None
                and len(owned.keys) > 1
                and owned.tally.bytes > budget / len(self._owners)
            )
            keys = owned.keys if owned is not None and is_greedy else self._held
            self._let_go(next(iter(keys)), EvictionReason.BYTES)

    def _let_go(self, key: Key, why: EvictionReason) -> None:
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
        """Tell what is held afterwards, if that is something else than before."""
        before = len(self._held), self._all.bytes
        try:
            yield
        finally:
            after = len(self._held), self._all.bytes
            if after != before:
                self._on_change(*after)


@dataclass(frozen=True, slots=True)
class _Held(Generic[ItemT]):
    """An item with what it held on to when it came: what is counted in is then also what is counted out."""

    item: ItemT
    segments: tuple[bytes, ...]
    put_at: float


@dataclass(slots=True)
class _Owned:
    """What one owner has, the oldest first."""

    keys: OrderedDict[Key, None] = field(default_factory=OrderedDict)
    tally: MemoryUsage = field(default_factory=MemoryUsage)

    def add(self, key: Key, segments: tuple[bytes, ...]) -> None:
        self.keys[key] = None
        self.tally.add(segments)

    def remove(self, key: Key, segments: tuple[bytes, ...]) -> None:
        del self.keys[key]
        self.tally.drop(segments)
