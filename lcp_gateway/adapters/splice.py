"""Puts a model's name, or more fields, into a JSON object; every other byte stays as it was."""

import json
import re
from collections.abc import Mapping

from lcp_gateway.adapters.json_bytes import SPACE, STRING, members

_LITERAL = b'"model"'
# The only ways to spell a letter of "model" as an escape: \u0064 … \u006f, and the capitals \u0044 … \u004f.
_ESCAPED_LETTERS = (b"\\u006", b"\\u004")
_LITERAL_AND_STRING = re.compile(
    _LITERAL + SPACE + rb":" + SPACE + rb"(" + STRING + rb")", re.DOTALL
)
_WHITE = b" \t\n\r"
_BACKSLASH = 0x5C


def replace_model(body: bytes, model: str) -> bytes:
    """Give a JSON object with another string as the value of its top-level key "model".

    Raises:
        ValueError: there is no such key, or two, or its value is no string.
    """
    start, end = _model_value(body)
    return b"".join((body[:start], json.dumps(model).encode("ascii"), body[end:]))


def add_fields(body: bytes, fields: Mapping[str, object]) -> bytes:
    """Give a JSON object with more top-level fields, put right before its closing bracket.

    The fields are ones that the object does not have; where it has one, most readers take the later.

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
    """Find the model's value with its quotes: where it starts, and where it ends (exclusive)."""
    at = body.find(_LITERAL)
    if body.find(_LITERAL, at + 1) < 0 and not any(escape in body for escape in _ESCAPED_LETTERS):
        # There is at most one place where the key can stand.
        found = _LITERAL_AND_STRING.match(body, at) if at > 0 else None
        if found is not None and _seems_at_top(body, at):
            return found.span(1)
    values = [
        (member.value_start, member.value_end) for member in members(body) if member.key == "model"
    ]
    if len(values) != 1:
        raise ValueError("the object must name model once")
    start, end = values[0]
    if not body.startswith(b'"', start):
        raise ValueError("model must be a string")
    return start, end


def _seems_at_top(body: bytes, at: int) -> bool:
    """Guard against a body that has the key only deeper down.

    Brackets in texts can make it wrong about one that has the key at the top; that one takes the longer way.
    """
    return body[at - 1] != _BACKSLASH and body.count(b"{", 0, at) == body.count(b"}", 0, at) + 1
