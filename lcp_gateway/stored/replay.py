"""The events of a stored response: those that came, under the id that its client knows, or those that it amounts to."""

from collections.abc import Mapping
from typing import Any

from lcp_gateway.adapters.documents import is_event_stream
from lcp_gateway.adapters.members import rewrite
from lcp_gateway.adapters.sse import Event, EventReader, may_tell
from lcp_gateway.stored.item_events import EventWriter, pieces, write_item
from lcp_gateway.stored.slices import elements, member_of, object_of, write

_NOT_ENCODED = ("", "identity")
_QUEUED, _IN_PROGRESS = "queued", "in_progress"
# What a response that begins does not know yet.
_AT_END = ("completed_at", "error", "incomplete_details", "usage")
# No event tells of a cancellation. Of those that end a stream, and that every client knows, this one is no lie; the
# status in it says which kind of failure it was.
_ENDS = {
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.failed",
}
_CREATED = "response.created"
_COMPLETED = "response.completed"
# Each part takes half a dozen events, so many small ones would become much larger than they are. Then the event at the end,
# which has them all, has to do.
_MAX_PIECES = 4096
# A number that no language takes for another.
_MAX_NUMBER = 2**53


def with_changes(document: bytes, changes: Mapping[str, object]) -> bytes:
    """Give a document with other values for some members; all others keep their bytes.

    Raises:
        ValueError: it is no JSON object.
    """
    if not changes:
        return document
    return rewrite(document, {key: write(value) for key, value in changes.items()})


def is_readable(content_type: str, content_encoding: str) -> bool:
    """Tell from a result's head whether it is a stream whose events can be read."""
    return is_event_stream(content_type) and content_encoding.strip().lower() in _NOT_ENCODED


class EventChanges:
    """Passes a response's stream on with some changes, which are the same whenever it is passed on again.

    Response objects in it get other members; events without a number get one; events up to a number are left out. All else
    passes as it came, also what cannot be read. It holds on to one event.
    """

    def __init__(
        self, changes: Mapping[str, object], *, starting_after: int = -1, is_open: bool = False
    ) -> None:
        """``changes`` are members of the response; ``starting_after`` is the number of the last event to leave out.

        ``is_open`` says that the event with the number 0, ``opening``, goes before the stream: its own ``response.created``
        is then left out, and where it does not begin with one, all its numbers are one higher.
        """
        self._changes = changes
        self._starting_after = starting_after
        self._reader = EventReader()
        self._last = 0 if is_open else -1
        self._expects_created = is_open
        self._shift = 0

    @property
    def last(self) -> int:
        """The highest number of an event so far, of those that are left out too."""
        return max(self._last, self._starting_after)

    def feed(self, chunk: bytes) -> bytes:
        """Give the events that are now whole."""
        return b"".join([self._passed(event) for event in self._reader.feed(chunk)])

    def rest(self) -> bytes:
        """Give what came after the last whole event, once there is no more to come."""
        return b"".join([event.raw for event in self._reader.rest()])

    def _passed(self, event: Event) -> bytes:
        if not may_tell(event):
            return event.raw
        value = object_of(event.data)
        if value is None:
            return event.raw
        if self._expects_created:
            self._expects_created = False
            if (value.get("type") or event.name) == _CREATED:
                return b""
            self._shift = 1
        number, is_new = self._numbered(value)
        if number <= self._starting_after:
            return b""
        changes: dict[str, bytes | None] = {}
        if is_new:
            changes["sequence_number"] = b"%d" % number
        if self._changes and isinstance(value.get("response"), dict):
            response = member_of(event.data, "response")
            if response is not None:
                changes["response"] = with_changes(response, self._changes)
        return event.with_data(rewrite(event.data, changes)) if changes else event.raw

    def _numbered(self, value: Mapping[str, Any]) -> tuple[int, bool]:
        """Give an event's number, its own or the one after the last, and whether it is new."""
        own = value.get("sequence_number")
        if isinstance(own, int) and not isinstance(own, bool) and abs(own) < _MAX_NUMBER:
            number = own + self._shift
            self._last = max(self._last, number)
            return number, bool(self._shift)
        self._last += 1
        return self._last, True


def opening(document: bytes) -> bytes:
    """Give the event that opens a stream before its provider has sent anything: a response as it stands at first."""
    out = EventWriter()
    out.add(_CREATED, {"response": document})
    return out.text()


def as_events(document: bytes) -> bytes:
    """Give a response that was not streamed as the stream that it would have been, each text in one piece.

    One that has not ended yet gets the events of its beginning only.

    Raises:
        ValueError: it is no JSON object.
    """
    response = object_of(document)
    if response is None:
        raise ValueError("not a JSON object")
    status = response.get("status")
    out = EventWriter()
    if status in (_QUEUED, _IN_PROGRESS):
        out.add(_CREATED, {"response": document})
        out.add(f"response.{status}", {"response": document})
        return out.text()
    begun = _begun(response, document)
    out.add(_CREATED, {"response": begun})
    out.add("response.in_progress", {"response": begun})
    told = out.length
    try:
        _write_items(out, response.get("output"), document)
    except ValueError:
        # Nested too deeply to be taken apart: the event at the end has them all.
        out.cut_to(told)
    out.add(_end_of(status), {"response": document})
    return out.text()


def _write_items(out: EventWriter, items: object, document: bytes) -> None:
    if not isinstance(items, list) or pieces(items) > _MAX_PIECES:
        return
    written = elements(member_of(document, "output") or b"")
    for index, (item, raw) in enumerate(zip(items, written, strict=True)):
        if isinstance(item, dict):
            write_item(out, index, item, raw)


def end_event(document: bytes, number: int) -> bytes:
    """Give the event alone that ends the stream of a response, under a number.

    Raises:
        ValueError: it is no JSON object.
    """
    response = object_of(document)
    if response is None:
        raise ValueError("not a JSON object")
    out = EventWriter(number)
    out.add(_end_of(response.get("status")), {"response": document})
    return out.text()


def _begun(response: Mapping[str, Any], document: bytes) -> bytes:
    """Give a finished response as it was at its beginning."""
    changes: dict[str, bytes | None] = {"status": write(_IN_PROGRESS), "output": b"[]"}
    changes |= {key: b"null" for key in _AT_END if key in response}
    return rewrite(document, changes)


def _end_of(status: object) -> str:
    return _ENDS.get(status, _COMPLETED) if isinstance(status, str) else _COMPLETED
