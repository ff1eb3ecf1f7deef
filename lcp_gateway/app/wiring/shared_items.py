"""Stored items in the Redis that gateways and workers share."""

from collections.abc import Callable, Sequence

from lcp_gateway.accounts.shared.calls import RedisUnavailable
from lcp_gateway.accounts.shared.objects import ObjectLimits, ObjectParts, PutResult, RedisObjects
from lcp_gateway.encryption import Encryption
from lcp_gateway.responses.items import Item, item_of, item_parts
from lcp_gateway.responses.store import HOLD_BYTES, ITEM_BYTES, SEGMENT_BYTES, StoreLimits
from lcp_gateway.responses.stored_items import StoreUnavailable
from lcp_gateway.telemetry.metrics import Metrics


class SharedItems:
    """The items of all gateways that share a Redis; counted as in memory."""

    def __init__(
        self, objects: RedisObjects, encryption: Callable[[], Encryption], limits: StoreLimits, metrics: Metrics
    ) -> None:
        """``encryption`` returns that of the settings in force."""
        self._objects = objects
        self._encryption = encryption
        self._limits = limits
        self._metrics = metrics

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        return self._limits

    def use(self, limits: StoreLimits) -> None:
        """Apply other limits from the next change on."""
        self._limits = limits

    async def put(self, owner: str, item: Item) -> bool:
        """Store an item."""
        return await self._put(owner, item, replaces=False)

    async def get(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Return an item."""
        return await self._get(owner, kind, item_id, remove=False)

    async def remove(self, owner: str, kind: str, item_id: str) -> Item | None:
        """Remove an item and return it."""
        return await self._get(owner, kind, item_id, remove=True)

    async def replace(self, owner: str, item: Item) -> bool:
        """Replace an item."""
        return await self._put(owner, item, replaces=True)

    async def items(self, owner: str, kind: str) -> Sequence[Item]:
        """Return the owner's items of a kind, without their bytes."""
        try:
            heads = await self._objects.heads(self._encryption(), owner, kind, self._limits.keep_s)
        except RedisUnavailable:
            raise StoreUnavailable from None
        return [item_of(head, None) for head in heads]

    async def purge(self) -> None:
        """Evict items that are too old, and show how much is stored."""
        try:
            self._count(await self._objects.purge(self._object_limits()))
        except RedisUnavailable:
            return

    async def _put(self, owner: str, item: Item, *, replaces: bool) -> bool:
        head, segments = item_parts(item)
        parts = ObjectParts(
            head,
            segments,
            ITEM_BYTES + len(head) + HOLD_BYTES * len(segments),
            [SEGMENT_BYTES + len(segment) for segment in segments],
        )
        # The earlier turns of a conversation are probably there: their last one is new, and what follows.
        new = len(segments) - max(0, len(item.inputs) - 1)
        try:
            result = await self._objects.put(
                self._encryption(),
                owner,
                item.kind.value,
                item.id,
                parts,
                self._object_limits(),
                replaces=replaces,
                new_segments=new,
            )
        except RedisUnavailable:
            raise StoreUnavailable from None
        self._count(result)
        return result.is_stored

    async def _get(self, owner: str, kind: str, item_id: str, *, remove: bool) -> Item | None:
        try:
            parts = await self._objects.get(
                self._encryption(), owner, kind, item_id, self._limits.keep_s, remove=remove
            )
        except RedisUnavailable:
            raise StoreUnavailable from None
        return None if parts is None else item_of(parts.head, parts.segments)

    def _object_limits(self) -> ObjectLimits:
        limits = self._limits
        return ObjectLimits(limits.items_per_owner, limits.bytes_in_all, limits.keep_s)

    def _count(self, result: PutResult) -> None:
        for why, removed in result.evicted.items():
            for _ in range(removed):
                self._metrics.stored_removed(why)
        self._metrics.stored(result.objects, result.bytes_in_all)
