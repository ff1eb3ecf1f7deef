"""Looks into JSON text and gives parts of it as they are written, so that they can be put elsewhere unchanged."""

import json
import re
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json, members, parse_json

_SPACE = re.compile(r"[ \t\n\r]*+")
# Only where a value ends is asked for, so numbers need not be numbers, however long they are.
_VALUES = json.JSONDecoder(parse_int=len, parse_float=len)


def object_or_none(data: bytes) -> dict[str, Any] | None:
    """Give the object that some JSON stands for; None where it is none, or cannot be read."""
    if not data:
        return None
    try:
        value = parse_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def member_value(body: bytes, key: str) -> bytes | None:
    """Give the value of a key of a JSON object as it is written; of two the last, as for most readers.

    Raises:
        ValueError: the body is not an object, or is cut.
    """
    found = None
    for member in members(body):
        if member.key == key:
            found = body[member.value_start : member.value_end]
    return found


def array_elements(array: bytes) -> list[bytes]:
    """Give the elements of a JSON array as they are written.

    Raises:
        ValueError: it is no array, or is nested too deeply.
    """
    try:
        return _elements(array.decode("utf-8"))
    except (ValueError, RecursionError):
        # The decoder's error holds the text.
        raise ValueError("not a JSON array") from None


def write_json(value: object) -> bytes:
    """Write a value as compact JSON.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        return dump_json(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _elements(text: str) -> list[bytes]:
    position = _after_space(text, 0)
    if not text.startswith("[", position):
        raise ValueError
    position = _after_space(text, position + 1)
    found: list[bytes] = []
    closed = text.startswith("]", position)
    while not closed:
        _, end = _VALUES.raw_decode(text, position)
        found.append(text[position:end].encode("utf-8"))
        position = _after_space(text, end)
        closed = text.startswith("]", position)
        if not closed:
            if not text.startswith(",", position):
                raise ValueError
            position = _after_space(text, position + 1)
    if _after_space(text, position + 1) != len(text):
        raise ValueError
    return found


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()
