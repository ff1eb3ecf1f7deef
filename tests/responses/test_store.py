"""The store, compared with a simple model."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lcp_gateway.responses import store as tally
from lcp_gateway.responses.store import EvictionReason, ResponseStore, StoreLimits
from tests.support.examples import examples

ROOMY = StoreLimits(items_per_owner=1_000, bytes_in_all=10**9, keep_s=10**6)
KIB = 1024


@dataclass(frozen=True)
class Thing:
    id: str
    held: tuple[bytes, ...] = field(default=(), repr=False)
    kind: str = "response"
    note: str = ""

    def segments(self):
        yield from self.held


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@dataclass
class Callbacks:
    """Collects the callbacks of a store."""

    changes: list[tuple[int, int]] = field(default_factory=list)
    removed: Counter[EvictionReason] = field(default_factory=Counter)

    def change(self, items, byte_count):
        self.changes.append((items, byte_count))

    def remove(self, why):
        self.removed[why] += 1


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return Callbacks()


@pytest.fixture
def make(clock, told):
    def make(**limits):
        chosen = StoreLimits(**{**_as_dict(ROOMY), **limits})
        return ResponseStore(chosen, clock=clock, on_change=told.change, on_removed=told.remove)

    return make


def _as_dict(limits):
    return {"items_per_owner": limits.items_per_owner, "bytes_in_all": limits.bytes_in_all, "keep_s": limits.keep_s}


def cost(*held):
    """Return the cost of one item that holds these bytes."""
    distinct = {id(segment): segment for segment in held}.values()
    return (
        tally.ITEM_BYTES
        + tally.HOLD_BYTES * len(held)
        + sum(tally.SEGMENT_BYTES + len(segment) for segment in distinct)
    )


def fresh(size):
    """Return bytes that no other item has."""
    return bytes(bytearray(size))


def ids(store, owner, kind="response"):
    return [item.id for item in store.items(owner, kind)]


def test_what_was_put_is_there_for_its_owner_and_kind_alone(make):
    store = make()
    thing = Thing("a", (b"one two three",))
    assert store.put("me", thing)
    assert store.get("me", "response", "a") is thing
    for elsewhere in (("you", "response", "a"), ("me", "chat", "a"), ("me", "response", "b")):
        assert store.get(*elsewhere) is None
        assert store.remove(*elsewhere) is None
    assert store.items("you", "response") == store.items("me", "chat") == []
    assert store.remove("me", "response", "a") is thing
    assert store.get("me", "response", "a") is None
    assert (len(store), store.held_bytes) == (0, 0)


def test_an_item_put_again_is_the_newest_and_counts_once(make, told):
    store = make()
    for name in ("a", "b", "a"):
        store.put("me", Thing(name, (fresh(100),)))
    assert ids(store, "me") == ["b", "a"]
    assert store.held_bytes == 2 * cost(fresh(100))
    assert not told.removed


def test_shared_bytes_count_once_for_as_long_as_any_item_has_them(make):
    store = make()
    first, second = fresh(5_000), fresh(70)
    store.put("me", Thing("a", (first,)))
    store.put("me", Thing("b", (first, second)))
    assert store.held_bytes == cost(first) + cost(first, second) - tally.SEGMENT_BYTES - 5_000
    store.remove("me", "response", "a")
    assert store.held_bytes == cost(first, second)


def test_the_same_bytes_twice_in_one_item_count_once(make):
    store = make()
    segment = fresh(5_000)
    store.put("me", Thing("a", (segment, segment)))
    assert store.held_bytes == cost(segment, segment) < 10_000


def test_an_owner_with_too_many_loses_its_oldest_and_no_other_owner_loses_any(make, told):
    store = make(items_per_owner=3)
    store.put("you", Thing("yours"))
    for number in range(5):
        store.put("me", Thing(str(number)))
    assert ids(store, "me") == ["2", "3", "4"]
    assert ids(store, "you") == ["yours"]
    assert told.removed == {EvictionReason.COUNT: 2}


def test_the_kinds_of_one_owner_count_together(make):
    store = make(items_per_owner=2)
    for thing in (Thing("a"), Thing("a", kind="chat"), Thing("b")):
        store.put("me", thing)
    assert (ids(store, "me"), ids(store, "me", "chat")) == (["b"], ["a"])


def test_a_noisy_owner_makes_room_from_its_own(make, told):
    store = make(bytes_in_all=10 * cost(fresh(KIB)))
    store.put("quiet", Thing("old", (fresh(KIB),)))
    for number in range(50):
        store.put("noisy", Thing(str(number), (fresh(KIB),)))
    assert ids(store, "quiet") == ["old"]
    assert ids(store, "noisy") == [str(n) for n in range(41, 50)]
    assert told.removed == {EvictionReason.BYTES: 41}


def test_an_owner_below_its_share_gets_room_from_the_oldest_of_all(make):
    store = make(bytes_in_all=10 * cost(fresh(KIB)))
    for number in range(10):
        store.put("noisy", Thing(str(number), (fresh(KIB),)))
    store.put("quiet", Thing("new", (fresh(KIB),)))
    assert ids(store, "noisy") == [str(n) for n in range(1, 10)]
    assert ids(store, "quiet") == ["new"]


def test_an_owners_only_item_may_be_larger_than_its_share(make):
    store = make(bytes_in_all=cost(fresh(10 * KIB)))
    for number in range(4):
        store.put(f"o{number}", Thing("small", (fresh(10),)))
    assert store.put("large", Thing("one", (fresh(9 * KIB),)))
    assert ids(store, "large") == ["one"]
    assert store.held_bytes <= store.limits.bytes_in_all


def test_an_item_over_the_budget_is_not_stored_and_the_older_one_is_dropped(make, told):
    store = make(bytes_in_all=cost(fresh(KIB)))
    assert store.put("me", Thing("a", (fresh(KIB),)))
    assert not store.put("me", Thing("a", (fresh(KIB + 1),)))
    assert store.get("me", "response", "a") is None
    assert (len(store), store.held_bytes) == (0, 0)
    assert not told.removed


def test_without_a_count_nothing_is_kept(make, told):
    store = make(items_per_owner=0)
    assert not store.put("me", Thing("a"))
    assert (len(store), store.held_bytes, told.changes) == (0, 0, [])


def test_an_expired_item_is_removed_when_it_is_looked_up(make, clock, told):
    store = make(keep_s=60)
    store.put("me", Thing("a", (fresh(10),)))
    clock.now += 59.9
    assert store.get("me", "response", "a")
    clock.now += 0.1
    assert ids(store, "me") == []
    assert store.get("me", "response", "a") is None
    assert (len(store), told.removed) == (0, {EvictionReason.AGE: 1})


@pytest.mark.parametrize("purged", ["by a put", "by hand"])
def test_an_expired_item_is_dropped_without_a_lookup(make, clock, told, purged):
    store = make(keep_s=60)
    for number in range(5):
        store.put(f"o{number}", Thing("a", (fresh(10),)))
        clock.now += 10
    clock.now = 160 + 15
    if purged == "by hand":
        store.purge()
    else:
        store.put("me", Thing("b"))
    assert told.removed == {EvictionReason.AGE: 2}
    assert len(store) == (3 if purged == "by hand" else 4)


def test_an_expired_item_is_neither_removed_nor_replaced(make, clock):
    store = make(keep_s=60)
    for change in (lambda: store.remove("me", "response", "a"), lambda: store.replace("me", Thing("a"))):
        store.put("me", Thing("a"))
        clock.now += 60
        assert not change()
        assert len(store) == 0


def test_a_changed_item_keeps_its_place_and_its_age(make, clock, told):
    store = make(keep_s=60)
    segment = fresh(500)
    for name in ("a", "b"):
        store.put("me", Thing(name, (segment,)))
    before = store.held_bytes
    clock.now += 50
    assert store.replace("me", Thing("a", (segment,), note="changed"))
    assert [item.note for item in store.items("me", "response")] == ["changed", ""]
    assert store.held_bytes == before
    clock.now += 10
    assert ids(store, "me") == []
    assert not told.removed


def test_a_change_of_a_missing_item_is_no_put(make):
    store = make()
    assert not store.replace("me", Thing("a"))
    assert len(store) == 0


def test_a_change_that_does_not_fit_drops_the_item_and_nothing_else(make, told):
    store = make(bytes_in_all=3 * cost(fresh(KIB)))
    for name in ("a", "b"):
        store.put("me", Thing(name, (fresh(KIB),)))
    assert not store.replace("me", Thing("b", (fresh(20 * KIB),)))
    assert ids(store, "me") == ["a"]
    assert told.removed == {EvictionReason.BYTES: 1}


def test_other_limits_hold_at_once(make, clock, told):
    store = make()
    for number in range(6):
        store.put("me", Thing(str(number), (fresh(KIB),)))
        store.put("you", Thing(str(number), (fresh(KIB),)))
        clock.now += 10
    store.use(StoreLimits(5, 10**9, 45))
    assert ids(store, "me") == ids(store, "you") == ["2", "3", "4", "5"]
    assert told.removed == {EvictionReason.AGE: 4}
    store.use(StoreLimits(3, 10**9, 45))
    assert told.removed[EvictionReason.COUNT] == 2
    store.use(StoreLimits(3, 4 * cost(fresh(KIB)), 45))
    assert ids(store, "me") == ids(store, "you") == ["4", "5"]
    store.use(StoreLimits(0, 10**9, 45))
    assert (len(store), store.held_bytes) == (0, 0)
    assert store.limits.items_per_owner == 0


def test_every_change_is_reported_once(make, told):
    store = make(items_per_owner=2)
    store.put("me", Thing("a"))
    store.put("me", Thing("b"))
    store.put("me", Thing("c"))
    store.get("me", "response", "c")
    store.remove("me", "response", "c")
    each = cost()
    assert told.changes == [(1, each), (2, 2 * each), (1, each)]


def test_neither_items_nor_bytes_stand_in_a_repr(make):
    store = make()
    store.put("me", Thing("a", (b"a secret prompt",)))
    assert "secret" not in repr(store) + repr(vars(store)["_owners"])


# The model: a list of all items in the order of the puts, with all sums computed each time.

POOL = [fresh(size) for size in (0, 1, 300, 2_000, 2_000, 9_000)]
OWNERS = st.sampled_from(["ann", "bob", "cy"])
THINGS = st.builds(
    Thing,
    id=st.sampled_from("abcd"),
    held=st.lists(st.integers(0, len(POOL) - 1), max_size=4).map(
        lambda numbers: tuple(POOL[number] for number in numbers)
    ),
    kind=st.sampled_from(["response", "chat"]),
)
LIMITS = st.builds(
    StoreLimits,
    items_per_owner=st.integers(0, 4),
    bytes_in_all=st.sampled_from([1_000, 5_000, 12_000, 30_000, 10**6]),
    keep_s=st.sampled_from([5.0, 50.0]),
)


class Model:
    """The same rules, in quadratic time."""

    def __init__(self, limits, clock):
        self.limits, self.clock = limits, clock
        self.rows = []  # [owner, item, put_at]

    def spent(self, rows):
        segments = {id(s): s for _, item, _ in rows for s in item.held}.values()
        holds = sum(len(item.held) for _, item, _ in rows)
        return (
            tally.ITEM_BYTES * len(rows)
            + tally.HOLD_BYTES * holds
            + sum(tally.SEGMENT_BYTES + len(s) for s in segments)
        )

    def of(self, owner):
        return [row for row in self.rows if row[0] == owner]

    def find(self, owner, kind, name):
        for row in self.of(owner):
            if (row[1].kind, row[1].id) == (kind, name):
                return row
        return None

    def drop_old(self):
        self.rows = [r for r in self.rows if self.clock() - r[2] < self.limits.keep_s]

    def drop_surplus(self):
        for owner in {row[0] for row in self.rows}:
            while len(self.of(owner)) > self.limits.items_per_owner:
                self.rows.remove(self.of(owner)[0])

    def make_room(self, owner=None):
        while self.spent(self.rows) > self.limits.bytes_in_all:
            mine = self.of(owner)
            share = self.limits.bytes_in_all / len({row[0] for row in self.rows})
            greedy = len(mine) > 1 and self.spent(mine) > share
            self.rows.remove(mine[0] if greedy else self.rows[0])

    def use(self, limits):
        self.limits = limits
        self.drop_old()
        self.drop_surplus()
        self.make_room()

    def put(self, owner, item):
        self.take(owner, item.kind, item.id)
        self.drop_old()
        row = [owner, item, self.clock()]
        if not self.limits.items_per_owner or self.spent([row]) > self.limits.bytes_in_all:
            return False
        self.rows.append(row)
        self.drop_surplus()
        self.make_room(owner)
        return True

    def take(self, owner, kind, name):
        row = self.find(owner, kind, name)
        if row is not None:
            self.rows.remove(row)
        return row

    def get(self, owner, kind, name):
        row = self.find(owner, kind, name)
        if row is not None and self.clock() - row[2] >= self.limits.keep_s:
            self.rows.remove(row)
            row = None
        return row

    def replace(self, owner, item):
        row = self.get(owner, item.kind, item.id)
        if row is None:
            return False
        if self.spent([[owner, item, 0]]) > self.limits.bytes_in_all:
            self.rows.remove(row)
            return False
        row[1] = item
        self.make_room(owner)
        return row in self.rows


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.told = Callbacks()
        limits = StoreLimits(3, 12_000, 50.0)
        self.store = ResponseStore(limits, clock=self.clock, on_change=self.told.change, on_removed=self.told.remove)
        self.model = Model(limits, self.clock)

    @rule(owner=OWNERS, thing=THINGS)
    def put(self, owner, thing):
        assert self.store.put(owner, thing) == self.model.put(owner, thing)

    @rule(owner=OWNERS, thing=THINGS)
    def get(self, owner, thing):
        row = self.model.get(owner, thing.kind, thing.id)
        assert self.store.get(owner, thing.kind, thing.id) is (row and row[1])

    @rule(owner=OWNERS, thing=THINGS)
    def remove(self, owner, thing):
        row = self.model.get(owner, thing.kind, thing.id)
        self.model.take(owner, thing.kind, thing.id)
        assert self.store.remove(owner, thing.kind, thing.id) is (row and row[1])

    @rule(owner=OWNERS, thing=THINGS)
    def replace(self, owner, thing):
        assert self.store.replace(owner, thing) == self.model.replace(owner, thing)

    @rule(limits=LIMITS)
    def use(self, limits):
        self.store.use(limits)
        self.model.use(limits)

    @rule(seconds=st.sampled_from([1.0, 4.0, 30.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def purge(self):
        self.store.purge()
        self.model.drop_old()

    @invariant()
    def they_hold_the_same(self):
        assert len(self.store) == len(self.model.rows)
        assert self.store.held_bytes == self.model.spent(self.model.rows)
        for owner in ("ann", "bob", "cy"):
            for kind in ("response", "chat"):
                young = [
                    item
                    for _, item, at in self.model.of(owner)
                    if item.kind == kind and self.clock() - at < self.model.limits.keep_s
                ]
                assert self.store.items(owner, kind) == young

    @invariant()
    def it_is_within_its_limits(self):
        limits = self.store.limits
        assert self.store.held_bytes <= limits.bytes_in_all
        for owned in self.store._owners.values():
            assert 0 < len(owned.keys) <= limits.items_per_owner

    @invariant()
    def the_last_change_told_is_how_it_stands(self):
        last = self.told.changes[-1] if self.told.changes else (0, 0)
        assert last == (len(self.store), self.store.held_bytes)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=examples(1.5), stateful_step_count=40, deadline=None)


def test_the_memory_of_ten_thousand_large_items_stays_near_the_budget():
    """In a process of its own, whose resident size does not include other tests."""
    command = [sys.executable, "-m", "bench.stored", "--memory-only"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"grew by ([0-9.]+) MiB at most on a budget of 64 MiB", done.stdout)
    assert found, done.stdout
    assert 40 < float(found[1]) < 1.25 * 64
