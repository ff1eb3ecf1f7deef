"""Puts a model's name, or more fields, into a JSON object; all other bytes stay as they are."""

import json
import re
from collections.abc import Mapping

from lcp_gateway.adapters.json_bytes import SPACE, STRING, members

_LITERAL = b'"model"'
# The only ways to spell a letter of "model" as an escape: \u0064 … \u006f, and the capitals \u0044 … \u004f.
_ESCAPED_LETTERS = (b"\\u006", b"\\u004")
_LITERAL_AND_STRING = re.compile(_LITERAL + SPACE + rb":" + SPACE + rb"(" + STRING + rb")", re.DOTALL)
_WHITE = b" \t\n\r"
_BACKSLASH = 0x5C


def replace_model(body: bytes, model: str) -> bytes:
    """Return a JSON object with another string as the value of its top-level key "model".

    Raises:
        ValueError: the key is missing or duplicate, or its value is not a string.
    """
    start, end = _model_value(body)
    return b"".join((body[:start], json.dumps(model).encode("ascii"), body[end:]))


def add_fields(body: bytes, fields: Mapping[str, object]) -> bytes:
    """Return a JSON object with more top-level fields, right before its closing bracket.

    Of a key that the object has already, most readers take the later value.

    Raises:
        ValueError: the body does not end as an object does, or a value is not finite.
    """
    if not fields:
        return body
    end = len(body.rstrip(_WHITE)) - 1
    if not body.endswith(b"}", 0, end + 1):
        raise ValueError("not a JSON object")
    text = json.dumps(dict(fields), separators=(",", ":"), allow_nan=False)
    added = text[1:-1].encode("ascii")
    # Only the empty object has its two brackets side by side at the very end.
    comma = b"" if body[:end].rstrip(_WHITE).endswith(b"{") else b","
    return b"".join((body[:end], comma, added, body[end:]))


def _model_value(body: bytes) -> tuple[int, int]:
    """Return the start and the exclusive end of the model's value with its quotes."""
    at = body.find(_LITERAL)
    if body.find(_LITERAL, at + 1) < 0 and not any(escape in body for escape in _ESCAPED_LETTERS):
        # The key can be in one place at most.
        found = _LITERAL_AND_STRING.match(body, at) if at > 0 else None
        if found is not None and _seems_at_top(body, at):
            return found.span(1)
    values = [(member.value_start, member.value_end) for member in members(body) if member.key == "model"]
    if len(values) != 1:
        raise ValueError("the object must name model once")
    start, end = values[0]
    if not body.startswith(b'"', start):
        raise ValueError("model must be a string")
    return start, end


def _seems_at_top(body: bytes, at: int) -> bool:
    """Return whether the key seems to be at the top level, by the brackets before it.

    Brackets in strings can make it wrong about a key at the top; such a body is searched member by member.
    """
    return body[at - 1] != _BACKSLASH and body.count(b"{", 0, at) == body.count(b"}", 0, at) + 1
