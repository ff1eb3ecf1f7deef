"""Says in an answer how it was routed: as a field of its JSON, or of the first event of its stream, and as a header."""

import json
from collections.abc import Mapping

from lcp_gateway.adapters.json_bytes import parse_json
from lcp_gateway.adapters.splice import add_fields
from lcp_gateway.adapters.sse import Event, EventReader

_FIELD = "routing_info"
_WHITE = b" \t\n\r"
# An event longer than this is passed on as it comes, and all that follows it.
_MAX_EVENT_BYTES = 1024 * 1024
_MAX_HEADER_CHARACTERS = 1024


def add_to_result(body: bytes, info: Mapping[str, object]) -> bytes:
    """Add ``info`` to a whole result as its last field; a result that is no JSON object is given back as it is.

    Raises:
        ValueError: ``info`` holds a number that JSON has no form for.
    """
    text = body.strip(_WHITE)
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return body
    return add_fields(body, {_FIELD: dict(info)})


def header_value(info: Mapping[str, object]) -> str:
    """Write ``info`` as compact JSON in printable ASCII, 1,024 characters at most.

    Where it is longer, the reason is left out, then the longest of the other fields, until it fits.

    Raises:
        ValueError: ``info`` holds a number that JSON has no form for.
    """
    left = dict(info)
    value = _printable(left)
    while len(value) > _MAX_HEADER_CHARACTERS:
        longest = max(left, key=lambda name: len(_printable(left[name])) + len(name))
        del left["reason" if "reason" in left else longest]
        value = _printable(left)
    return value


class RoutingInfoStream:
    """Adds ``info`` to the first event of a stream of server-sent events that has data, if that is a JSON object.

    All other bytes pass in order; only those of an unfinished event are held back, and none after that event.
    """

    def __init__(self, info: Mapping[str, object]) -> None:
        self._info = dict(info)
        self._reader = EventReader(_MAX_EVENT_BYTES)
        self._done = False

    def feed(self, chunk: bytes) -> bytes:
        """Give the bytes that may go out now.

        Raises:
            ValueError: ``info`` holds a number that JSON has no form for.
        """
        if self._done:
            return chunk
        passed = b"".join([self._passed(event) for event in self._reader.feed(chunk)])
        return passed + self.rest() if self._has_found() else passed

    def rest(self) -> bytes:
        """Give what was held back, once there is no more to come."""
        self._done = True
        return b"".join([event.raw for event in self._reader.rest()])

    def _has_found(self) -> bool:
        return self._done

    def _passed(self, event: Event) -> bytes:
        if self._done or (event.is_whole and not event.has_data):
            return event.raw
        self._done = True
        if not _is_object(event.data):
            return event.raw
        return event.with_data(add_fields(event.data, {_FIELD: self._info}))


def _is_object(payload: bytes) -> bool:
    try:
        return isinstance(parse_json(payload), dict)
    except ValueError:
        return False


def _printable(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    # The one control character that JSON in ASCII leaves as it is.
    return text.replace("\x7f", "\\u007f")
