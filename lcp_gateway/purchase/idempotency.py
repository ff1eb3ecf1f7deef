"""The idempotency cache: results by the keys that a repeat of their request has, within a budget of bytes and a time."""

import hashlib
import hmac
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from lcp_gateway.clock import utc_now
from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.journal import RepeatIdentity
from lcp_gateway.purchase.money import Refund
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.result_buffer import BufferPool, ResultBuffer
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.values import value

_MAX_ENTRIES = 20_000
_LENGTH_BYTES = 4


class KeyReused(PurchaseError):
    """The idempotency key belongs to another request."""


class ResultLost(PurchaseError):
    """It was bought before, and its result is no longer held."""

    def __init__(self, buffer: ResultBuffer) -> None:
        quote = buffer.purchase.quote if buffer.purchase is not None else None
        super().__init__(
            "this was bought before and its result is no longer held; asking again would pay again", quote=quote
        )
        self.verdict = buffer.verdict
        self.buffer = buffer


@value
class RepeatKeys:
    """The keys by which a request may be a repeat of another.

    ``key`` is the client's Idempotency-Key. ``is_retry``: the client says that it tries again. ``client_request_id`` is an
    id that a client keeps over its retries.
    """

    key: str | None = None
    is_retry: bool = False
    client_request_id: str | None = None


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much is held and for how long: bytes in all, seconds for bytes, for keys and for unmarked repeats."""

    bytes_in_all: int = 64 * 1024 * 1024
    bytes_for_s: float = 600.0
    keys_for_s: float = 86_400.0
    repeats_for_s: float = 120.0


_Key = tuple[str, str, str, bytes]


class _TimedIndex:
    """Results by key, each kept for ``keep_s``; the oldest are dropped first when there are too many."""

    def __init__(self, keep_s: float) -> None:
        self.keep_s = keep_s
        self._held: OrderedDict[_Key, tuple[ResultBuffer, float]] = OrderedDict()

    def get(self, name: _Key, now: float) -> ResultBuffer | None:
        found = self._held.get(name)
        return found[0] if found is not None and now - found[1] <= self.keep_s else None

    def put(self, name: _Key, buffer: ResultBuffer, now: float) -> None:
        self._held[name] = (buffer, now)
        self._held.move_to_end(name)
        while self._held:
            oldest, (_, since) = next(iter(self._held.items()))
            if len(self._held) <= _MAX_ENTRIES and now - since <= self.keep_s:
                return
            del self._held[oldest]

    def drop(self, name: _Key, buffer: ResultBuffer) -> None:
        if (found := self._held.get(name)) is not None and found[0] is buffer:
            del self._held[name]


class RepeatHashes:
    """Makes the hashes by which the journal recognises repeats; two gateways with the same secret make the same ones."""

    def __init__(self, secret: bytes, now: Callable[[], datetime] = utc_now) -> None:
        self._secret = secret
        self._now = now

    def identity(
        self, order: Order, keys: RepeatKeys, limits: CacheLimits, *, looks_for_first_try: bool
    ) -> RepeatIdentity:
        """Return the identity of a request.

        An Idempotency-Key counts for ``keys_for_s`` whatever the body; a client's request id for ``repeats_for_s`` and
        together with the body, and only where there is no key.
        """
        # For every purchase: one hash, of parts whose lengths are known or written before them.
        key_id, key, client_request_id = order.key_id, keys.key, keys.client_request_id
        whole = b"%d %b %b %b" % (len(key_id), key_id.encode(), order.task.kind.encode(), order.body_sha256)
        body = hashlib.sha256(whole).digest()
        if key is None and client_request_id is None and not looks_for_first_try:
            return RepeatIdentity(body)
        now = self._now()
        retry_for = timedelta(seconds=limits.repeats_for_s)
        since = now - retry_for if looks_for_first_try and key is None else None
        if key is not None:
            name = _joined(b"key", key_id, key.encode("utf-8", "surrogateescape"))
            return RepeatIdentity(body, self._hash(name), now + timedelta(seconds=limits.keys_for_s))
        if client_request_id is not None:
            name = _joined(b"client", key_id, client_request_id.encode("utf-8", "surrogateescape"), body)
            return RepeatIdentity(body, self._hash(name), now + retry_for, since)
        return RepeatIdentity(body, first_try_since=since)

    def _hash(self, name: bytes) -> bytes:
        return hmac.digest(self._secret, name, "sha256")


def _joined(what: bytes, key_id: str, *parts: bytes) -> bytes:
    whole = (what, key_id.encode(), *parts)
    return b"".join([len(part).to_bytes(_LENGTH_BYTES) + part for part in whole])


_UNKEYED = RepeatHashes(b"")


class IdempotencyCache:
    """Finds the result that a request asks for again."""

    def __init__(
        self,
        limits: CacheLimits,
        clock: Callable[[], float] = time.monotonic,
        *,
        on_held: Callable[[int], None] = lambda _byte_count: None,
        hashes: RepeatHashes = _UNKEYED,
    ) -> None:
        """``on_held`` is called with the number of bytes held, each time a result ends."""
        self._hashes = hashes
        self._limits = limits
        self._clock = clock
        self._on_held = on_held
        self._by_key = _TimedIndex(limits.keys_for_s)
        self._by_repeat = _TimedIndex(limits.repeats_for_s)
        # Ended results whose bytes are held, with the time until which they are; each in order of that time.
        self._keyed: deque[tuple[ResultBuffer, float]] = deque()
        self._unkeyed: deque[tuple[ResultBuffer, float]] = deque()
        self.pool = BufferPool(limits.bytes_in_all)
        self.pool.make_room = self._make_room

    def use(self, limits: CacheLimits) -> None:
        """Apply other limits. Bytes that exceed them are released at once; results that are held keep their times."""
        self._limits = limits
        self._by_key.keep_s = limits.keys_for_s
        self._by_repeat.keep_s = limits.repeats_for_s
        self.pool.limit_bytes = limits.bytes_in_all
        self._make_room()

    def find(self, order: Order, keys: RepeatKeys) -> ResultBuffer | None:
        """Return the result that this request repeats, if it does.

        Raises:
            KeyReused: the idempotency key came with another body before.
            ResultLost: it was bought, and its bytes are gone.
        """
        buffer = self._repeated(order, keys)
        if buffer is None:
            return None
        if buffer.error is not None and buffer.verdict is Verdict.NONE:
            # It failed and cost nothing: it is tried again.
            return None
        if not buffer.readable and buffer.error is None:
            raise ResultLost(buffer)
        return buffer

    def find_undecided(self, order: Order, keys: RepeatKeys) -> ResultBuffer | None:
        """Return the result that this request repeats, if it ended with its payment unknown or its refund withheld."""
        if keys.key is None and keys.client_request_id is None and not keys.is_retry:
            return None
        try:
            buffer = self._repeated(order, keys)
        except KeyReused:
            return None
        if buffer is None or not buffer.ended or (purchase := buffer.purchase) is None:
            return None
        is_undecided = buffer.verdict is Verdict.UNKNOWN or purchase.refund is Refund.WITHHELD
        return buffer if is_undecided else None

    def identity(self, order: Order, keys: RepeatKeys) -> RepeatIdentity:
        """Return the identity that the journal recognises a repeat of an order by; before the order's own result is added."""
        # Where the same body is known here, a retry's first try was here too, and its outcome is known.
        knows_body = self._by_repeat.get(_body_key(order), self._clock()) is not None
        looks_for_first_try = keys.is_retry and not knows_body
        return self._hashes.identity(order, keys, self._limits, looks_for_first_try=looks_for_first_try)

    def add(self, buffer: ResultBuffer, keys: RepeatKeys) -> None:
        """Add a result that is about to be bought; ``ended`` has to follow."""
        now = self._clock()
        for index, key in self._places(buffer.order, keys):
            index.put(key, buffer, now)

    def remove(self, buffer: ResultBuffer, keys: RepeatKeys) -> None:
        """Remove a result whose key turned out to be that of another request; ``ended`` has to follow all the same."""
        for index, key in self._places(buffer.order, keys):
            index.drop(key, buffer)

    def ended(self, buffer: ResultBuffer, keys: RepeatKeys) -> None:
        """Hold an ended result's bytes for as long as they may be asked for."""
        now = self._clock()
        if keys.key is not None:
            self._keyed.append((buffer, now + self._limits.bytes_for_s))
        else:
            self._unkeyed.append((buffer, now + self._limits.repeats_for_s))
        for held in (self._keyed, self._unkeyed):
            while held and held[0][1] < now:
                held.popleft()[0].forget()
        # A retained result may have grown past the limit while it could not be released.
        self._make_room()
        self._on_held(self.pool.held_bytes)

    def _make_room(self) -> None:
        """Release the bytes of ended results until the pool is within its limit, the unmarked ones first."""
        for held in (self._unkeyed, self._keyed):
            while held and self.pool.held_bytes > self.pool.limit_bytes:
                held.popleft()[0].forget()

    def _places(self, order: Order, keys: RepeatKeys) -> list[tuple[_TimedIndex, _Key]]:
        places = [(self._by_repeat, _body_key(order))]
        if keys.client_request_id is not None:
            places.append((self._by_repeat, _client_key(order, keys.client_request_id)))
        if keys.key is not None:
            places.append((self._by_key, _idempotency_key(order, keys.key)))
        return places

    def _repeated(self, order: Order, keys: RepeatKeys) -> ResultBuffer | None:
        now = self._clock()
        if keys.key is not None:
            found = self._by_key.get(_idempotency_key(order, keys.key), now)
            if found is not None and not _is_same(found.order, order):
                raise KeyReused("the idempotency key was used with another request before")
            return found
        found = None
        if keys.is_retry:
            found = self._by_repeat.get(_body_key(order), now)
        if found is None and keys.client_request_id is not None:
            found = self._by_repeat.get(_client_key(order, keys.client_request_id), now)
        return found


def _idempotency_key(order: Order, key: str) -> _Key:
    return ("key", order.key_id, key, b"")


def _body_key(order: Order) -> _Key:
    return ("body", order.key_id, order.task.kind, order.body_sha256)


def _client_key(order: Order, client_request_id: str) -> _Key:
    return ("client", order.key_id, client_request_id, order.body_sha256)


def _is_same(one: Order, other: Order) -> bool:
    return one.body_sha256 == other.body_sha256 and one.task.kind is other.task.kind
