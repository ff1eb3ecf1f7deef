"""Adds the routing of a result to it: in a field of its JSON or of its stream's first event, and in a header."""

import json
from collections.abc import Mapping

from lcp_gateway.adapters.json_bytes import object_or_none
from lcp_gateway.adapters.splice import add_fields
from lcp_gateway.adapters.sse import Event, StreamRewriter

_FIELD = "routing_info"
_WHITE = b" \t\n\r"
# A longer event is passed on as it comes, with the rest of the stream.
_MAX_EVENT_BYTES = 1024 * 1024
_MAX_HEADER_CHARACTERS = 1024


def add_to_result(body: bytes, info: Mapping[str, object]) -> bytes:
    """Add ``info`` to a whole result as its last field; a result that is not a JSON object is returned as it is.

    Raises:
        ValueError: ``info`` holds a number without a JSON form.
    """
    text = body.strip(_WHITE)
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return body
    return add_fields(body, {_FIELD: dict(info)})


def header_value(info: Mapping[str, object]) -> str:
    """Write ``info`` as compact JSON in printable ASCII, 1,024 characters at most.

    Where it is longer, the reason is left out, then the longest of the other fields, until it fits.

    Raises:
        ValueError: ``info`` holds a number without a JSON form.
    """
    left = dict(info)
    value = _printable(left)
    while len(value) > _MAX_HEADER_CHARACTERS:
        longest = max(left, key=lambda name: len(_printable(left[name])) + len(name))
        del left["reason" if "reason" in left else longest]
        value = _printable(left)
    return value


class RoutingInfoStream(StreamRewriter):
    """Adds ``info`` to the first event of a stream that has data, if that is a JSON object.

    All other bytes pass unchanged. ``feed`` raises ``ValueError`` where ``info`` holds a number without a JSON form.
    """

    def __init__(self, info: Mapping[str, object]) -> None:
        super().__init__(_MAX_EVENT_BYTES)
        self._info = dict(info)

    def rewrite(self, event: Event) -> bytes:
        """Add the field to the first event with data, after which everything passes."""
        if event.is_whole and not event.has_data:
            return event.raw
        self.pass_rest()
        if object_or_none(event.data) is None:
            return event.raw
        return event.with_data(add_fields(event.data, {_FIELD: self._info}))


def _printable(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    # The one control character that JSON in ASCII does not escape.
    return text.replace("\x7f", "\\u007f")
