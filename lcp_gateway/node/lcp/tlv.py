"""TLV streams as BOLT 1 writes them, and the forms of their values.

A record is BigSize(type), BigSize(length), value; types ascend strictly. Each number has one encoding only, so that what is
read and written again is the same bytes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from lcp_gateway.lightning.terms import bigsize, tu64

MAX_RECORD_BYTES: Final = 0xFFFF
"""The longest value of a record. It also bounds the sum of a list's items."""

MAX_LIST_ITEMS: Final = 1024
ID_BYTES: Final = 32

_ONE_BYTE_END: Final = 0xFD
_ONE_BYTE: Final = tuple(bytes((number,)) for number in range(_ONE_BYTE_END))
_BIGSIZE_BYTES: Final = {0xFD: 2, 0xFE: 4, 0xFF: 8}
_BIGSIZE_LEAST: Final = {0xFD: 0xFD, 0xFE: 0x1_0000, 0xFF: 0x1_0000_0000}
_U16_BYTES: Final = 2
_U16_MAX: Final = 0xFFFF
_TU32_BYTES: Final = 4
_TU64_BYTES: Final = 8


class WireError(ValueError):
    """Bytes that are no valid message, or a message that has no valid bytes.

    The text names fields, numbers and lengths, never a value: values may be prompts.
    """


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is read from its bytes and written to them; both raise ``WireError``."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def read_bigsize(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at`` and the position after it.

    Raises:
        WireError: the number is cut short, or longer than it has to be.
    """
    if at >= len(data):
        raise WireError("a number is missing at the end")
    first = data[at]
    size = _BIGSIZE_BYTES.get(first)
    if size is None:
        return first, at + 1
    end = at + 1 + size
    if end > len(data):
        raise WireError("a number is cut short")
    number = int.from_bytes(data[at + 1 : end], "big")
    if number < _BIGSIZE_LEAST[first]:
        raise WireError("a number has a longer form than it needs")
    return number, end


def read_records(payload: bytes) -> list[tuple[int, bytes]]:
    """Split a TLV stream into its records (type, value), in the order of their types.

    Raises:
        WireError: a record is cut short or too long, or the types do not ascend.
    """
    records: list[tuple[int, bytes]] = []
    at, last, size = 0, -1, len(payload)
    while at < size:
        # Almost all numbers are of one byte: those are read here.
        kind = payload[at]
        at += 1
        if kind >= _ONE_BYTE_END:
            kind, at = read_bigsize(payload, at - 1)
        if kind <= last:
            raise WireError(f"type {kind} follows type {last}")
        if at < size and payload[at] < _ONE_BYTE_END:
            length = payload[at]
            at += 1
        else:
            length, at = read_bigsize(payload, at)
        if length > MAX_RECORD_BYTES:
            raise WireError(f"type {kind} has {length} bytes: at most {MAX_RECORD_BYTES} are allowed")
        end = at + length
        if end > size:
            raise WireError(f"type {kind} is cut short: {size - at} of {length} bytes")
        records.append((kind, payload[at:end]))
        at, last = end, kind
    return records


def write_records(records: Iterable[tuple[int, bytes]]) -> bytes:
    """Write records, which the caller gives in ascending order of type.

    Raises:
        WireError: a value is too long.
    """
    parts: list[bytes] = []
    for kind, value in records:
        length = len(value)
        if length > MAX_RECORD_BYTES:
            raise WireError(f"type {kind} has {length} bytes: at most {MAX_RECORD_BYTES} are allowed")
        parts.append(_ONE_BYTE[kind] if kind < _ONE_BYTE_END else bigsize(kind))
        parts.append(_ONE_BYTE[length] if length < _ONE_BYTE_END else bigsize(length))
        parts.append(value)
    return b"".join(parts)


def _read_u16(value: bytes) -> int:
    if len(value) != _U16_BYTES:
        raise WireError(f"{len(value)} bytes in place of {_U16_BYTES}")
    return int.from_bytes(value, "big")


def _write_u16(number: int) -> bytes:
    if not 0 <= number <= _U16_MAX:
        raise WireError("the number does not fit 16 bits")
    return number.to_bytes(_U16_BYTES, "big")


def _truncated(most: int) -> Form:
    def read(value: bytes) -> int:
        if len(value) > most:
            raise WireError(f"a number of {len(value)} bytes: at most {most} are allowed")
        if value[:1] == b"\x00":
            raise WireError("a number begins with a zero byte")
        return int.from_bytes(value, "big")

    def write(number: int) -> bytes:
        if not 0 <= number < 1 << 8 * most:
            raise WireError(f"the number does not fit {8 * most} bits")
        return tu64(number)

    return Form(read, write)


def _id(value: bytes) -> bytes:
    if len(value) != ID_BYTES:
        raise WireError(f"{len(value)} bytes in place of {ID_BYTES}")
    return value


def _read_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise WireError("not valid UTF-8") from None


def _write_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise WireError("not valid Unicode") from None


def list_of(item: Form) -> Form:
    """Return the form of a list: BigSize(count), then each item with its length before it."""

    def read(value: bytes) -> tuple[Any, ...]:
        count, at = read_bigsize(value, 0)
        if count > MAX_LIST_ITEMS:
            raise WireError(f"a list of {count} items: at most {MAX_LIST_ITEMS} are allowed")
        items = []
        for number in range(count):
            length, at = read_bigsize(value, at)
            end = at + length
            if end > len(value):
                raise WireError(f"item {number} of a list is cut short")
            items.append(item.read(value[at:end]))
            at = end
        if at < len(value):
            raise WireError("bytes follow the last item of a list")
        return tuple(items)

    def write(items: tuple[Any, ...]) -> bytes:
        if len(items) > MAX_LIST_ITEMS:
            raise WireError(f"a list of {len(items)} items: at most {MAX_LIST_ITEMS} are allowed")
        parts = [bigsize(len(items))]
        for one in items:
            value = item.write(one)
            parts += (bigsize(len(value)), value)
        return b"".join(parts)

    return Form(read, write)


U16: Final = Form(_read_u16, _write_u16)
TU32: Final = _truncated(_TU32_BYTES)
TU64: Final = _truncated(_TU64_BYTES)
B32: Final = Form(_id, _id)
TEXT: Final = Form(_read_text, _write_text)
BYTES: Final = Form(bytes, bytes)
BYTES_LIST: Final = list_of(BYTES)
TEXT_LIST: Final = list_of(TEXT)
