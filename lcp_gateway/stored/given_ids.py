"""Puts an id into a stream whose provider gave none, for a client that wants to find its result again."""

from typing import Any

from lcp_gateway.adapters.members import rewrite
from lcp_gateway.stored.events import EventReader, may_tell, read_event
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
            passed.append(self._passed(self._reader.cut(chunk[start : start + _STEP_BYTES])))
            if self._passes_all():
                passed.append(chunk[start + _STEP_BYTES :])
                break
        return b"".join(passed)

    def rest(self) -> bytes:
        """Give what came after the last whole event, once there is no more to come."""
        return self._passed(self._reader.end())

    def _passes_all(self) -> bool:
        return self._is_wanted is False

    def _passed(self, raws: list[bytes]) -> bytes:
        passed = b"".join([self._changed(raw) for raw in raws])
        if self._passes_all():
            # From now on nothing is held back.
            passed += b"".join(self._reader.end())
        return passed

    def _changed(self, raw: bytes) -> bytes:
        if self._passes_all() or not may_tell(raw):
            return raw
        event = read_event(raw)
        value = object_of(event.data)
        if value is None or not _has_place(value):
            return raw
        if self._is_wanted is None:
            self._is_wanted = response_id((raw,), stream=True) is None
            if not self._is_wanted:
                return raw
        data = _with_id(event.data, value, self._given_id)
        changed = event.with_data(data) if data is not None else None
        return raw if changed is None else changed


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
