"""The one reader of server-sent events, by the WHATWG specification: incremental, bounded, each event with its own bytes.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

The judgement of results, the adapters, stored responses and usage all read streams through ``EventReader``, and change them
through ``StreamRewriter``. The raw bytes of all events together are the stream.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""A longer event is passed on in pieces, and is never read."""

_BOM = b"\xef\xbb\xbf"
# An event ends with an empty line; empty lines before its first line belong to it. The repeats are possessive, or the
# two halves of one \r\n could count as two line ends. It begins with a line end, which is found much faster than
# anything else.
_END = re.compile(rb"(?:\n(?<=[^\r\n]\n)|\r(?<=[^\r\n]\r)\n?+)(?:\n|\r\n?+)")
# As far back as an event's end can begin before bytes that have just come.
_END_BYTES = 4
_EVENT_ENDS = (b"\n\n", b"\n\r", b"\r\r", b"\n\r\n", b"\r\r\n")
_LINE_ENDS = b"\r\n"


class Fields(NamedTuple):
    """The fields of one event. ``data`` is None where there is no data line: such an event is not dispatched."""

    name: str
    data: bytes | None
    id: str | None
    retry: int | None


_NO_FIELDS = Fields("", None, None, None)


class Event:
    """One event: all of its bytes, and its fields, which are read on first use.

    Comments alone make an event too, without data. An incomplete event (the unterminated rest of a stream, or a piece of an
    event above the bound) has bytes and no fields.
    """

    __slots__ = ("_at_start", "_fields", "is_whole", "raw")

    def __init__(self, raw: bytes, *, is_whole: bool = True, at_start: bool = False) -> None:
        """``at_start`` says that the stream begins with it, where a byte order mark is no part of its first line."""
        self.raw = raw
        self.is_whole = is_whole
        self._at_start = at_start
        self._fields: Fields | None = None

    def __repr__(self) -> str:
        """Show its size only: its data may hold a model's output."""
        return f"Event({len(self.raw)} bytes)"

    def __eq__(self, other: object) -> bool:
        """Compare bytes and completeness."""
        return isinstance(other, Event) and self.raw == other.raw and self.is_whole == other.is_whole

    __hash__ = None  # type: ignore[assignment]

    @property
    def fields(self) -> Fields:
        """All fields."""
        if self._fields is None:
            self._fields = read_fields(self.text) if self.is_whole else _NO_FIELDS
        return self._fields

    @property
    def name(self) -> str:
        """Its type; empty without an ``event`` line."""
        return self.fields.name

    @property
    def data(self) -> bytes:
        """Its data lines joined by line feeds; empty where there are none."""
        return self.fields.data or b""

    @property
    def has_data(self) -> bool:
        """Whether a client dispatches it."""
        return self.fields.data is not None

    @property
    def text(self) -> bytes:
        """Its bytes without the stream's byte order mark."""
        return self.raw.removeprefix(_BOM) if self._at_start else self.raw

    def with_data(self, data: bytes) -> bytes:
        """Return its bytes with other data, in the place of its first data line; an event without data stays as it is."""
        mark = self.raw[: len(self.raw) - len(self.text)]
        lines = self.text.splitlines(keepends=True)
        places = [place for place, line in enumerate(lines) if _is_data(line)]
        if not self.is_whole or not places:
            return self.raw
        first = lines[places[0]]
        end = first[len(first.rstrip(_LINE_ENDS)) :]
        colon = first.find(b":") + 1
        start = first[:colon] if colon else b"data:"
        if not colon or first.startswith(b" ", colon):
            start += b" "
        written = [start + line + end for line in data.splitlines() or [b""]]
        dropped = set(places[1:])
        kept = [line for place, line in enumerate(lines) if place not in dropped]
        return mark + b"".join([*kept[: places[0]], *written, *kept[places[0] + 1 :]])

    def without_data(self) -> bytes:
        """Return its bytes without its data lines; nothing if only the empty line is left."""
        lines = self.text.splitlines(keepends=True)
        left = [line for line in lines if not _is_data(line)]
        return b"".join(left) if any(line.strip() for line in left) else b""


class EventReader:
    """Cuts a stream into its events, however it is chunked. It buffers one event.

    An event longer than ``max_event_bytes`` comes in pieces that are not whole, and sets ``had_overlong``.
    """

    __slots__ = ("_begun", "_held", "_in_overlong", "_max_event_bytes", "had_overlong")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._held = bytearray()
        self._begun = False
        self._in_overlong = False
        self.had_overlong = False

    @property
    def holds(self) -> bool:
        """Whether the beginning of an event is buffered, or a piece of one above the bound has been returned."""
        return bool(self._held) or self._in_overlong

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that are now whole."""
        if (
            not self._held
            and self._begun
            and not self._in_overlong
            and chunk.find(b"\n\n") == len(chunk) - 2
            and b"\r" not in chunk
            and not chunk.startswith(b"\n")
            and 1 < len(chunk) <= self._max_event_bytes
        ):
            # One whole event: nearly every chunk.
            return [Event(chunk)]
        held = self._held
        searched = max(len(held) - _END_BYTES, 0)
        held += chunk
        events: list[Event] = []
        start = 0
        for match in _END.finditer(held, searched):
            end = match.end()
            events.append(self._event(bytes(held[start:end])))
            start = end
        # The search has run out, so the buffer may shrink.
        del held[:start]
        if len(held) > self._max_event_bytes:
            self._in_overlong = self.had_overlong = True
        if self._in_overlong and len(held) > _END_BYTES:
            events.append(Event(bytes(held[:-_END_BYTES]), is_whole=False))
            del held[:-_END_BYTES]
        return events

    def rest(self) -> list[Event]:
        """Return the unterminated rest at the end of the stream. By the specification it is not an event."""
        raw = bytes(self._held)
        self._held.clear()
        return [Event(raw, is_whole=False)] if raw else []

    def _event(self, raw: bytes) -> Event:
        at_start, self._begun = not self._begun, True
        if self._in_overlong or len(raw) > self._max_event_bytes:
            self._in_overlong, self.had_overlong = False, True
            return Event(raw, is_whole=False)
        return Event(raw, at_start=at_start)


class StreamRewriter:
    """Passes a stream on event by event, each as ``rewrite`` returns it. It buffers one event.

    After ``pass_rest`` was called, the rest of the stream passes as it comes.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._reader = EventReader(max_event_bytes)
        self._passes_rest = False
        self._after_cr = False

    def rewrite(self, event: Event) -> bytes:
        """Return the bytes to pass on for an event."""
        raise NotImplementedError

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes that may go out now."""
        if self.passes_rest():
            return chunk
        passed = [event.raw if self.passes_rest() else self._rewritten(event) for event in self._reader.feed(chunk)]
        if self.passes_rest():
            passed.append(self.rest())
        return b"".join(passed)

    def _rewritten(self, event: Event) -> bytes:
        # The second half of the CRLF that ended the event before: it stays, whatever becomes of this event.
        is_split = self._after_cr and event.raw.startswith(b"\n")
        self._after_cr = event.raw.endswith(b"\r")
        if is_split:
            return b"\n" + self.rewrite(Event(event.raw[1:], is_whole=event.is_whole))
        return self.rewrite(event)

    def rest(self) -> bytes:
        """Return the buffered bytes, once the stream has ended."""
        return b"".join([event.raw for event in self._reader.rest()])

    def pass_rest(self) -> None:
        """Rewrite no more events."""
        self._passes_rest = True

    def passes_rest(self) -> bool:
        """Return whether no more events are rewritten."""
        return self._passes_rest


def read_fields(text: bytes) -> Fields:
    """Read the lines of one event, of which the last needs no end."""
    name = b""
    event_id: str | None = None
    retry: int | None = None
    data: list[bytes] = []
    for line in text.splitlines():
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
        elif key == b"id":
            if b"\0" not in value:
                event_id = value.decode("utf-8", "replace")
        elif key == b"retry" and value.isdigit():
            # No time has more digits than that.
            retry = int(value[:18])
    joined = b"\n".join(data) if data else None
    return Fields(name.decode("utf-8", "replace"), joined, event_id, retry)


def is_event_stream(content_type: str) -> bool:
    """Return whether a content type is server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def is_uncompressed(content_encoding: str) -> bool:
    """Return whether a result's bytes can be read as they are; a compressed one is not decompressed."""
    return content_encoding.strip().lower() in {"", "identity"}


def is_readable_stream(content_type: str, content_encoding: str) -> bool:
    """Return whether a result is a stream whose events can be read."""
    return is_event_stream(content_type) and is_uncompressed(content_encoding)


def ends_event(tail: bytes) -> bool:
    """Return whether a stream that ends with ``tail`` (four bytes do) is between two events."""
    return tail.endswith(_EVENT_ENDS)


def object_events(blocks: Iterable[bytes]) -> Iterator[Event]:
    """Yield the whole events of a stream whose data may be a JSON object, without comments and end marks."""
    reader = EventReader()
    for block in blocks:
        for event in reader.feed(block):
            if may_hold_object(event):
                yield event


def may_hold_object(event: Event) -> bool:
    """Return whether an event's data may be a JSON object. A cheap test: a stream can be all comments."""
    return event.is_whole and b"{" in event.raw


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data") and line[4:].strip(_LINE_ENDS)[:1] in (b"", b":")
