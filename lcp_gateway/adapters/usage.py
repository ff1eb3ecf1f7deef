"""The tokens that a result says it took, read from its bytes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_USAGE = b'"usage"'
_WHITE_SPACE = b" \t\r\n"
_MAX_USAGE_BYTES = 4 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a result says it took."""

    input_tokens: int
    output_tokens: int


def usage_of(data: bytes) -> Usage | None:
    """Find the last usage in a JSON result, or in the event of one; None where there is none.

    Quotes inside a string are escaped, so that a model's text cannot pass for the key.
    """
    at = data.rfind(_USAGE)
    while at >= 0:
        start = at + len(_USAGE)
        value = data[start : start + _MAX_USAGE_BYTES].lstrip(_WHITE_SPACE)
        if value.startswith(b":") and (usage := _read_usage(value[1:].lstrip(_WHITE_SPACE))):
            return usage
        at = data.rfind(_USAGE, 0, at)
    return None


def _read_usage(value: bytes) -> Usage | None:
    if not value.startswith(b"{"):
        return None
    try:
        # Latin-1 takes any bytes, and no number is changed by it.
        found, _ = json.JSONDecoder().raw_decode(value.decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    tokens_in = _first_count(found, "prompt_tokens", "input_tokens")
    tokens_out = _first_count(found, "completion_tokens", "output_tokens")
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(tokens_in or 0, tokens_out or 0)


def _first_count(found: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = whole_number(found.get(name))
        if value is not None and value >= 0:
            return value
    return None


def whole_number(value: object) -> int | None:
    """Return a whole number, also one that is written as 2000.0, as some languages write all numbers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
