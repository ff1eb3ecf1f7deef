"""The events of a stored response: those that came, under the id that its client knows, or those that it amounts to."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lcp_gateway.adapters.json_bytes import (
    array_elements,
    dump_json,
    member_value,
    object_or_none,
    rewrite_object,
)
from lcp_gateway.adapters.sse import Event, EventReader, is_event_stream, may_hold_object

_STARTED = b'"in_progress"'
# How an item looks before anything of it has come; only what it has is made empty.
_EMPTY: Mapping[str, Mapping[str, bytes]] = {
    "message": {"status": _STARTED, "content": b"[]"},
    "reasoning": {"status": _STARTED, "summary": b"[]", "content": b"[]"},
    "function_call": {"status": _STARTED, "arguments": b'""'},
    "custom_tool_call": {"status": _STARTED, "input": b'""'},
}
_EMPTY_PART: Mapping[str, bytes] = {
    "text": b'""',
    "refusal": b'""',
    "annotations": b"[]",
    "logprobs": b"[]",
}
# The member of a part that has its text, and what the events of that text are called.
_PART_TEXTS = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}
# The same of items that have no parts.
_ITEM_TEXTS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
_SUMMARY_TEXT = "response.reasoning_summary_text"
_NO_TEXT = b'""'
_NOTHING: Mapping[str, bytes] = MappingProxyType({})
# An id stands in every event of its item.
_MAX_ID_CHARS = 256
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class EventWriter:
    """Writes events with numbers from ``first`` on."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._events: list[bytes] = []

    def add(self, kind: str, members: Mapping[str, bytes]) -> None:
        """Write the next event. ``members`` are JSON; line ends between its tokens become spaces."""
        name = kind.encode()
        parts = [b'"type":"%b","sequence_number":%d' % (name, self._first + len(self._events))]
        parts += [b'"%b":%b' % (key.encode(), value) for key, value in members.items()]
        data = b",".join(parts).translate(_ONE_LINE)
        self._events.append(b"event: %b\ndata: {%b}\n\n" % (name, data))

    @property
    def length(self) -> int:
        """How many events were written."""
        return len(self._events)

    def cut_to(self, length: int) -> None:
        """Take back all events but the first so many."""
        del self._events[length:]

    def text(self) -> bytes:
        """Give all events."""
        return b"".join(self._events)


def count_parts(items: list[Any]) -> int:
    """Count what output items are made of; each piece has events of its own."""
    count = 0
    for item in items:
        parts = _listed(item, "content")
        notes = sum(len(_listed(part, "annotations")) for part in parts)
        count += 1 + len(parts) + notes + len(_listed(item, "summary"))
    return count


def write_item(out: EventWriter, index: int, item: Mapping[str, Any], raw: bytes) -> None:
    """Write the events of one output item: ``item`` as it is read, ``raw`` as it is written.

    Raises:
        ValueError: ``raw`` is no such item.
    """
    kind = str(item.get("type"))
    place = {"item_id": _item_id(item), "output_index": b"%d" % index}
    number = {"output_index": b"%d" % index}
    begun = _without(raw, item, _EMPTY.get(kind, {}))
    out.add("response.output_item.added", {**number, "item": begun})
    if kind == "reasoning":
        _write_summary(out, place, item, raw)
    if kind in {"message", "reasoning"}:
        _write_content(out, place, item, raw)
    elif kind in _ITEM_TEXTS:
        key, events = _ITEM_TEXTS[kind]
        name = member_value(raw, "name")
        text = _text(item, raw, key)
        _write_delta(out, events, place, text)
        _write_done(out, events, place, key, text, {"name": name} if name else {})
    out.add("response.output_item.done", {**number, "item": raw})


def _write_content(
    out: EventWriter, place: Mapping[str, bytes], item: Mapping[str, Any], raw: bytes
) -> None:
    for index, (part, raw_part) in enumerate(_parts(item, raw, "content")):
        here = {**place, "content_index": b"%d" % index}
        kind = str(part.get("type"))
        begun = _without(raw_part, part, _EMPTY_PART) if kind in _PART_TEXTS else raw_part
        out.add("response.content_part.added", {**here, "part": begun})
        if kind in _PART_TEXTS:
            key, events = _PART_TEXTS[kind]
            text = _text(part, raw_part, key)
            more: dict[str, bytes] = {}
            if kind == "output_text":
                more = {"logprobs": _array(raw_part, part, "logprobs")}
            _write_delta(out, events, here, text, more)
            _write_annotations(out, here, part, raw_part)
            _write_done(out, events, here, key, text, more)
        out.add("response.content_part.done", {**here, "part": raw_part})


def _write_annotations(
    out: EventWriter, place: Mapping[str, bytes], part: Mapping[str, Any], raw: bytes
) -> None:
    for index, (_, annotation) in enumerate(_parts(part, raw, "annotations")):
        members = {**place, "annotation_index": b"%d" % index, "annotation": annotation}
        out.add("response.output_text.annotation.added", members)


def _write_summary(
    out: EventWriter, place: Mapping[str, bytes], item: Mapping[str, Any], raw: bytes
) -> None:
    for index, (part, raw_part) in enumerate(_parts(item, raw, "summary")):
        here = {**place, "summary_index": b"%d" % index}
        begun = _without(raw_part, part, _EMPTY_PART)
        out.add("response.reasoning_summary_part.added", {**here, "part": begun})
        text = _text(part, raw_part, "text")
        _write_delta(out, _SUMMARY_TEXT, here, text)
        _write_done(out, _SUMMARY_TEXT, here, "text", text)
        out.add("response.reasoning_summary_part.done", {**here, "part": raw_part})


def _write_delta(
    out: EventWriter,
    events: str,
    place: Mapping[str, bytes],
    text: bytes | None,
    more: Mapping[str, bytes] = _NOTHING,
) -> None:
    if text is not None and text != _NO_TEXT:
        out.add(f"{events}.delta", {**place, "delta": text, **more})


def _write_done(
    out: EventWriter,
    events: str,
    place: Mapping[str, bytes],
    key: str,
    text: bytes | None,
    more: Mapping[str, bytes] = _NOTHING,
) -> None:
    if text is not None:
        out.add(f"{events}.done", {**place, key: text, **more})


def _text(holder: Mapping[str, Any], raw: bytes, key: str) -> bytes | None:
    """Give a text as it is written; None where it is none."""
    return member_value(raw, key) if isinstance(holder.get(key), str) else None


def _parts(
    holder: Mapping[str, Any], raw: bytes, key: str
) -> list[tuple[Mapping[str, Any], bytes]]:
    """Give the objects in a list, each as it is read and as it is written."""
    values = _listed(holder, key)
    written = array_elements(member_value(raw, key) or b"") if values else []
    return [
        (value, text)
        for value, text in zip(values, written, strict=True)
        if isinstance(value, dict)
    ]


def _array(raw: bytes, holder: Mapping[str, Any], key: str) -> bytes:
    return (member_value(raw, key) or b"[]") if _listed(holder, key) else b"[]"


def _without(raw: bytes, holder: Mapping[str, Any], empty: Mapping[str, bytes]) -> bytes:
    changes = {key: value for key, value in empty.items() if holder.get(key) is not None}
    return rewrite_object(raw, changes) if changes else raw


def _item_id(item: Mapping[str, Any]) -> bytes:
    """Give an item's id; every event names one, so it is empty where the item has none."""
    given = item.get("id")
    return dump_json(given) if isinstance(given, str) and len(given) <= _MAX_ID_CHARS else _NO_TEXT


def _listed(holder: object, key: str) -> list[Any]:
    values = holder.get(key) if isinstance(holder, dict) else None
    return values if isinstance(values, list) else []


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
    return rewrite_object(document, {key: dump_json(value) for key, value in changes.items()})


def is_readable(content_type: str, content_encoding: str) -> bool:
    """Tell from a result's head whether it is a stream whose events can be read."""
    return is_event_stream(content_type) and content_encoding.strip().lower() in _NOT_ENCODED


class EventRewriter:
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
        if not may_hold_object(event):
            return event.raw
        value = object_or_none(event.data)
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
            response = member_value(event.data, "response")
            if response is not None:
                changes["response"] = with_changes(response, self._changes)
        return event.with_data(rewrite_object(event.data, changes)) if changes else event.raw

    def _numbered(self, value: Mapping[str, Any]) -> tuple[int, bool]:
        """Give an event's number, its own or the one after the last, and whether it is new."""
        own = value.get("sequence_number")
        if isinstance(own, int) and not isinstance(own, bool) and abs(own) < _MAX_NUMBER:
            number = own + self._shift
            self._last = max(self._last, number)
            return number, bool(self._shift)
        self._last += 1
        return self._last, True


def opening_event(document: bytes) -> bytes:
    """Give the event that opens a stream before its provider has sent anything: a response as it stands at first."""
    out = EventWriter()
    out.add(_CREATED, {"response": document})
    return out.text()


def to_events(document: bytes) -> bytes:
    """Give a response that was not streamed as the stream that it would have been, each text in one piece.

    One that has not ended yet gets the events of its beginning only.

    Raises:
        ValueError: it is no JSON object.
    """
    response = object_or_none(document)
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
    if not isinstance(items, list) or count_parts(items) > _MAX_PIECES:
        return
    written = array_elements(member_value(document, "output") or b"")
    for index, (item, raw) in enumerate(zip(items, written, strict=True)):
        if isinstance(item, dict):
            write_item(out, index, item, raw)


def end_event(document: bytes, number: int) -> bytes:
    """Give the event alone that ends the stream of a response, under a number.

    Raises:
        ValueError: it is no JSON object.
    """
    response = object_or_none(document)
    if response is None:
        raise ValueError("not a JSON object")
    out = EventWriter(number)
    out.add(_end_of(response.get("status")), {"response": document})
    return out.text()


def _begun(response: Mapping[str, Any], document: bytes) -> bytes:
    """Give a finished response as it was at its beginning."""
    changes: dict[str, bytes | None] = {"status": dump_json(_IN_PROGRESS), "output": b"[]"}
    changes |= {key: b"null" for key in _AT_END if key in response}
    return rewrite_object(document, changes)


def _end_of(status: object) -> str:
    return _ENDS.get(status, _COMPLETED) if isinstance(status, str) else _COMPLETED
