"""Redaction of log lines: every value is bounded, and none may be a prompt, an output or a key."""

import math
import sys
from collections.abc import MutableMapping
from functools import lru_cache
from types import TracebackType
from typing import Any

MAX_TEXT = 512
"""Characters of one value; longer ones are cut."""
MAX_FIELDS = 40
"""Fields of one line, apart from those that every line has."""
MAX_ITEMS = 16
"""Elements of a list in one field."""
MAX_ITEM_TEXT = 256
"""Characters of one of them."""
MAX_FRAMES = 6
"""Frames of an error's traceback, innermost last."""

# Names of fields that could hold a client's text, a provider's, or a secret.
FORBIDDEN = frozenset(
    {
        "api_keys",
        "apikey",
        "arguments",
        "authorization",
        "body",
        "choices",
        "completion",
        "content",
        "cookie",
        "data",
        "delta",
        "headers",
        "input",
        "instructions",
        "invoice",
        "key",
        "macaroon",
        "messages",
        "metadata",
        "output",
        "password",
        "payload",
        "payment_request",
        "preimage",
        "prompt",
        "result",
        "secret",
        "text",
        "token",
        "tools",
    }
)
_FORBIDDEN_ENDINGS = ("_body", "_content", "_json", "_key", "_macaroon", "_password", "_prompt", "_secret", "_token")
_ESSENTIAL = frozenset({"timestamp", "event", "level", "logger", "request_id", "error_type", "error_at", "error_cause"})

_SCALARS = (int, bool, type(None))


def redact(event: MutableMapping[str, Any]) -> None:
    """Remove a line's forbidden fields, and make each other one bounded and plain."""
    if len(event) > MAX_FIELDS:
        for name in [name for name in event if name not in _ESSENTIAL][MAX_FIELDS:]:
            del event[name]
    for name in _forbidden_of(tuple(event)):
        del event[name]
    for name, value in event.items():
        kind = type(value)
        if kind is str:
            if len(value) > MAX_TEXT:
                event[name] = cut(value)
        elif kind not in _SCALARS:
            # No name is added or removed meanwhile, so the iteration goes on.
            event[name] = _plain(value)


# The names of fields are written in the code: they, and the lines that they make, are few.
@lru_cache(maxsize=1024)
def _forbidden_of(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name.lower() in FORBIDDEN or name.lower().endswith(_FORBIDDEN_ENDINGS))


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """Return the text, or its beginning with the number of characters cut."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more)"


def describe_error(event: MutableMapping[str, Any]) -> None:
    """Replace ``exc_info`` by the error's type and the frames it passed.

    Neither the error's message nor a local variable is shown: either may hold a client's text. A caller that knows the
    message to be fit for a log passes it as a field of its own.
    """
    found = event.pop("exc_info", None)
    if not found:
        return
    error = _error_of(found)
    if error is not None:
        event["error_type"] = cut(type(error).__qualname__, 80)
        event["error_at"] = _places(error.__traceback__)
        cause = error.__cause__ or error.__context__
        if cause is not None:
            event["error_cause"] = cut(type(cause).__qualname__, 80)


def _error_of(found: object) -> BaseException | None:
    if isinstance(found, BaseException):
        return found
    if isinstance(found, tuple):
        return next((part for part in found if isinstance(part, BaseException)), None)
    return sys.exception()


def _places(traceback: TracebackType | None) -> str:
    places: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = "/".join(code.co_filename.rsplit("/", 2)[-2:])
        places.append(f"{file}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return " > ".join(places[-MAX_FRAMES:])


def _plain(value: object) -> object:
    """Return a scalar or a short list of scalars for any value; one without a plain form becomes its type's name."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        # A subclass, such as an enum's member, becomes its text.
        return cut(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = [v if type(v) in _SCALARS else _plain_text(v) for v in list(value)[:MAX_ITEMS]]
        return items if len(value) <= MAX_ITEMS else [*items, f"… ({len(value) - MAX_ITEMS} more)"]
    return _plain_text(value)


def _plain_text(value: object) -> str:
    if isinstance(value, str):
        return cut(str(value), MAX_ITEM_TEXT)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, int | float):
        return str(value)
    return f"<{type(value).__qualname__}>"
