"""Header blocks of HTTP/2 (RFC 7541): encoded without state, decoded with the table that the server fills."""

from collections.abc import Iterable
from typing import Final

import hpack
from hpack.table import HeaderTable

Headers = tuple[tuple[bytes, bytes], ...]
Decoded = tuple[Headers, bytes | None]

MAX_HEADER_BLOCK_BYTES: Final = 64 * 1024
# Answers of one daemon have few different heads and trailers.
_MAX_KNOWN_BLOCKS: Final = 64
_SEVEN_BITS: Final = 0x7F


def header_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode headers for ``open``."""
    return b"".join(literal(name, content) for name, content in headers)


def literal(name: bytes, value: bytes) -> bytes:
    """Encode one header for a request: not indexed and not compressed (RFC 7541, 6.2.2), so that a block needs no state."""
    name_size, size = len(name), len(value)
    if name_size < _SEVEN_BITS and size < _SEVEN_BITS:
        # As nearly all are.
        return b"\x00%c%b%c%b" % (name_size, name, size, value)
    return b"\x00" + _length(name_size) + name + _length(size) + value


def _length(number: int) -> bytes:
    if number < _SEVEN_BITS:
        return bytes((number,))
    out = bytearray((_SEVEN_BITS,))
    number -= _SEVEN_BITS
    while number > _SEVEN_BITS:
        out.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class HeaderDecoder:
    """Decodes the blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BLOCK_BYTES)
        # Decoded blocks that did not change the decoder's table, for as long as that stays as it is.
        self._known_blocks: dict[bytes, Decoded] = {}

    def decode(self, encoded: bytes) -> Decoded:
        """Return a block's headers and the value of ``:status``: None without one, empty where it is malformed.

        Raises:
            HPACKError: the block is broken.
        """
        known = self._known_blocks.get(encoded)
        if known is not None:
            return known
        table = self._decoder.header_table
        size, count, newest = _shape(table)
        decoded = self._decoder.decode(encoded, raw=True)
        headers = tuple((bytes(name), bytes(value)) for name, value, *_ in decoded)
        found = headers, _status(headers)
        size_now, count_now, newest_now = _shape(table)
        # A new entry is another object, and the old one was held until here: its place in memory cannot be used again.
        is_same = size_now == size and count_now == count and newest_now is newest
        if not is_same or len(self._known_blocks) >= _MAX_KNOWN_BLOCKS:
            self._known_blocks.clear()
        else:
            self._known_blocks[encoded] = found
        return found


def _shape(table: HeaderTable) -> tuple[int, int, object]:
    """Return what changes with every change of a dynamic table: its limit, its length, its newest entry (RFC 7541, 4)."""
    entries = table.dynamic_entries
    return table.maxsize, len(entries), entries[0] if entries else None


def _status(headers: Headers) -> bytes | None:
    values = [content for name, content in headers if name == b":status"]
    if not values:
        return None
    is_number = len(values) == 1 and len(values[0]) == 3 and values[0].isdigit()  # noqa: PLR2004 - 8.3.2
    return values[0] if is_number else b""
