"""What stored items cost in memory, where many of them share the same byte strings."""

# What an item costs beside its byte strings, measured with the headers, the metadata and the ids of an ordinary response:
# the item itself, its places in the store's tables, and the allocator's own share.
ITEM_BYTES = 2_048
# What a byte string costs beside its bytes: its head, what malloc rounds up, and its places in two tables.
SEGMENT_BYTES = 192
# What each hold on one costs: its place in the item's tuple, and in the store's.
HOLD_BYTES = 16


class Tally:
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
