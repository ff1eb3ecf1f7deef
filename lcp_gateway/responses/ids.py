"""Ids for results whose provider sent none, and their place in a stream. They are random, so they cannot be guessed."""

import secrets
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json, member_value, object_or_none, rewrite_object, with_changes
from lcp_gateway.adapters.sse import Event, StreamRewriter, may_hold_object
from lcp_gateway.responses.documents import find_id

BACKGROUND_PREFIX = "resp_bg_"
"""Begins the ids of background jobs, whose clients get an id before a provider is asked."""


def new_response_id() -> str:
    """Return an id for a response whose provider sent none."""
    return f"resp_{secrets.token_hex(24)}"


def new_background_id() -> str:
    """Return an id for a background job."""
    return f"{BACKGROUND_PREFIX}{secrets.token_hex(24)}"


def new_chat_id() -> str:
    """Return an id for a chat completion whose provider sent none."""
    return f"chatcmpl-{secrets.token_hex(24)}"


# Of most streams only the first event has to be parsed, and a chunk of a fast one holds many.
_STEP_BYTES = 2_048


class IdInjector(StreamRewriter):
    """Passes a stream on; if its first event has no usable id, all its events get the given one.

    ``find_id`` decides on the same bytes, so the id is the one that the result is stored by.
    """

    def __init__(self, given_id: str) -> None:
        super().__init__()
        self._given_id = given_id
        self._is_needed = False

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes that may go out now."""
        return b"".join(
            [
                super(IdInjector, self).feed(chunk[start : start + _STEP_BYTES])
                for start in range(0, len(chunk), _STEP_BYTES)
            ]
        )

    def rewrite(self, event: Event) -> bytes:
        """Return an event with the id in its place for one."""
        value = object_or_none(event.data) if may_hold_object(event) else None
        if value is None or not _has_place(value):
            return event.raw
        if not self._is_needed:
            self._is_needed = find_id((event.text,), stream=True) is None
            if not self._is_needed:
                self.pass_rest()
                return event.raw
        data = _with_id(event.data, value, self._given_id)
        return event.raw if data is None else event.with_data(data)


def _has_place(value: dict[str, Any]) -> bool:
    """Return whether an event has an id: it holds a response, or is a chunk of a chat."""
    return isinstance(value.get("response"), dict) or isinstance(value.get("choices"), list)


def _with_id(data: bytes, value: dict[str, Any], given_id: str) -> bytes | None:
    if not isinstance(value.get("response"), dict):
        return rewrite_object(data, {"id": dump_json(given_id)})
    response = member_value(data, "response")
    if response is None:
        return None
    return rewrite_object(data, {"response": with_changes(response, {"id": given_id})})
