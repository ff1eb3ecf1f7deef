"""Ids that the gateway gives to results without one, and how they get into a stream. They cannot be guessed."""

import secrets
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json, member_value, object_or_none, rewrite_object
from lcp_gateway.adapters.sse import Event, EventReader, may_hold_object
from lcp_gateway.responses.documents import find_id
from lcp_gateway.responses.replay import with_changes

BACKGROUND_PREFIX = "resp_bg_"
"""What the ids of background jobs begin with, whose clients are answered before any provider is."""


def new_response_id() -> str:
    """Give an id for a response whose provider gave none."""
    return f"resp_{secrets.token_hex(24)}"


def new_background_id() -> str:
    """Give an id for a response that is worked on in the background."""
    return f"{BACKGROUND_PREFIX}{secrets.token_hex(24)}"


def new_chat_id() -> str:
    """Give an id for a chat completion whose provider gave none."""
    return f"chatcmpl-{secrets.token_hex(24)}"


# The first event is all that has to be read of most streams, and a fast one brings many at once.
_STEP_BYTES = 2_048


class IdInjector:
    """Passes a stream on; where its first event has no id that it can be found by, all of them get the given one.

    Whether they do is told from the same bytes as by ``response_id``, by which the result is stored. Holds on to one event.
    """

    def __init__(self, given_id: str) -> None:
        self._given_id = given_id
        self._reader = EventReader()
        self._is_wanted: bool | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Give the events that are now whole; once none is to be changed, everything as it comes."""
        if self._passes_all():
            return chunk
        passed = []
        for start in range(0, len(chunk), _STEP_BYTES):
            passed.append(self._passed(self._reader.feed(chunk[start : start + _STEP_BYTES])))
            if self._passes_all():
                passed.append(chunk[start + _STEP_BYTES :])
                break
        return b"".join(passed)

    def rest(self) -> bytes:
        """Give what came after the last whole event, once there is no more to come."""
        return self._rest()

    def _passes_all(self) -> bool:
        return self._is_wanted is False

    def _passed(self, events: list[Event]) -> bytes:
        passed = b"".join([self._changed(event) for event in events])
        # Once all passes nothing is held back.
        return passed + self._rest() if self._passes_all() else passed

    def _rest(self) -> bytes:
        return b"".join([event.raw for event in self._reader.rest()])

    def _changed(self, event: Event) -> bytes:
        if self._passes_all() or not may_hold_object(event):
            return event.raw
        value = object_or_none(event.data)
        if value is None or not _has_place(value):
            return event.raw
        if self._is_wanted is None:
            self._is_wanted = find_id((event.text,), stream=True) is None
            if not self._is_wanted:
                return event.raw
        data = _with_id(event.data, value, self._given_id)
        return event.raw if data is None else event.with_data(data)


def _has_place(value: dict[str, Any]) -> bool:
    """Tell whether an event is one that has an id: it holds a response, or is a chunk of a chat."""
    return isinstance(value.get("response"), dict) or isinstance(value.get("choices"), list)


def _with_id(data: bytes, value: dict[str, Any], given_id: str) -> bytes | None:
    if not isinstance(value.get("response"), dict):
        return rewrite_object(data, {"id": dump_json(given_id)})
    response = member_value(data, "response")
    if response is None:
        return None
    return rewrite_object(data, {"response": with_changes(response, {"id": given_id})})
