"""Puts an id into a stream whose provider gave none, for a client that wants to find its result again."""

from typing import Any

from lcp_gateway.adapters.members import rewrite
from lcp_gateway.adapters.sse import Event, EventReader, may_tell
from lcp_gateway.stored.recordings import response_id
from lcp_gateway.stored.replay import with_changes
from lcp_gateway.stored.slices import member_of, object_of, write

# The first event is all that has to be read of most streams, and a fast one brings many at once.
_STEP_BYTES = 2_048


class GivenId:
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
        if self._passes_all() or not may_tell(event):
            return event.raw
        value = object_of(event.data)
        if value is None or not _has_place(value):
            return event.raw
        if self._is_wanted is None:
            self._is_wanted = response_id((event.text,), stream=True) is None
            if not self._is_wanted:
                return event.raw
        data = _with_id(event.data, value, self._given_id)
        return event.raw if data is None else event.with_data(data)


def _has_place(value: dict[str, Any]) -> bool:
    """Tell whether an event is one that has an id: it holds a response, or is a chunk of a chat."""
    return isinstance(value.get("response"), dict) or isinstance(value.get("choices"), list)


def _with_id(data: bytes, value: dict[str, Any], given_id: str) -> bytes | None:
    if not isinstance(value.get("response"), dict):
        return rewrite(data, {"id": write(given_id)})
    response = member_of(data, "response")
    if response is None:
        return None
    return rewrite(data, {"response": with_changes(response, {"id": given_id})})
