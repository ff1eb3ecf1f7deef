"""The events of a stored response: those of its stream, under the id that its client knows, or equivalent ones."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lcp_gateway.adapters.json_bytes import (
    array_elements,
    dump_json,
    member_value,
    object_or_none,
    rewrite_object,
    with_changes,
)
from lcp_gateway.adapters.sse import Event, StreamRewriter, may_hold_object

_STARTED = b'"in_progress"'
# The members of an item that are empty when it begins; only members that it has are emptied.
_EMPTY: Mapping[str, Mapping[str, bytes]] = {
    "message": {"status": _STARTED, "content": b"[]"},
    "reasoning": {"status": _STARTED, "summary": b"[]", "content": b"[]"},
    "function_call": {"status": _STARTED, "arguments": b'""'},
    "custom_tool_call": {"status": _STARTED, "input": b'""'},
}
_EMPTY_PART: Mapping[str, bytes] = {"text": b'""', "refusal": b'""', "annotations": b"[]", "logprobs": b"[]"}
# The member of a part that has its text, and the names of that text's events.
_PART_TEXTS = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}
# The same for items without parts.
_ITEM_TEXTS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
_SUMMARY_TEXT = "response.reasoning_summary_text"
_NO_TEXT = b'""'
_NO_MEMBERS: Mapping[str, bytes] = MappingProxyType({})
# Every event of an item repeats its id.
_MAX_ID_CHARS = 256
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class EventWriter:
    """Writes events, numbered from ``first`` on."""

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
        """Drop all events but the first so many."""
        del self._events[length:]

    def text(self) -> bytes:
        """Return all events."""
        return b"".join(self._events)


def count_parts(items: list[Any]) -> int:
    """Count the parts of output items; each has events of its own."""
    count = 0
    for item in items:
        parts = _listed(item, "content")
        notes = sum(len(_listed(part, "annotations")) for part in parts)
        count += 1 + len(parts) + notes + len(_listed(item, "summary"))
    return count


def write_item(out: EventWriter, index: int, item: Mapping[str, Any], raw: bytes) -> None:
    """Write the events of one output item: ``item`` parsed, ``raw`` as it is written.

    Raises:
        ValueError: ``raw`` is not that item.
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


def _write_content(out: EventWriter, place: Mapping[str, bytes], item: Mapping[str, Any], raw: bytes) -> None:
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


def _write_annotations(out: EventWriter, place: Mapping[str, bytes], part: Mapping[str, Any], raw: bytes) -> None:
    for index, (_, annotation) in enumerate(_parts(part, raw, "annotations")):
        members = {**place, "annotation_index": b"%d" % index, "annotation": annotation}
        out.add("response.output_text.annotation.added", members)


def _write_summary(out: EventWriter, place: Mapping[str, bytes], item: Mapping[str, Any], raw: bytes) -> None:
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
    more: Mapping[str, bytes] = _NO_MEMBERS,
) -> None:
    if text is not None and text != _NO_TEXT:
        out.add(f"{events}.delta", {**place, "delta": text, **more})


def _write_done(
    out: EventWriter,
    events: str,
    place: Mapping[str, bytes],
    key: str,
    text: bytes | None,
    more: Mapping[str, bytes] = _NO_MEMBERS,
) -> None:
    if text is not None:
        out.add(f"{events}.done", {**place, key: text, **more})


def _text(holder: Mapping[str, Any], raw: bytes, key: str) -> bytes | None:
    """Return a text as it is written; None where it is not a string."""
    return member_value(raw, key) if isinstance(holder.get(key), str) else None


def _parts(holder: Mapping[str, Any], raw: bytes, key: str) -> list[tuple[Mapping[str, Any], bytes]]:
    """Return the objects in a list, each parsed and as it is written."""
    values = _listed(holder, key)
    written = array_elements(member_value(raw, key) or b"") if values else []
    return [(value, text) for value, text in zip(values, written, strict=True) if isinstance(value, dict)]


def _array(raw: bytes, holder: Mapping[str, Any], key: str) -> bytes:
    return (member_value(raw, key) or b"[]") if _listed(holder, key) else b"[]"


def _without(raw: bytes, holder: Mapping[str, Any], empty: Mapping[str, bytes]) -> bytes:
    changes = {key: value for key, value in empty.items() if holder.get(key) is not None}
    return rewrite_object(raw, changes) if changes else raw


def _item_id(item: Mapping[str, Any]) -> bytes:
    """Return an item's id as JSON; empty without one, since every event names an id."""
    given = item.get("id")
    return dump_json(given) if isinstance(given, str) and len(given) <= _MAX_ID_CHARS else _NO_TEXT


def _listed(holder: object, key: str) -> list[Any]:
    values = holder.get(key) if isinstance(holder, dict) else None
    return values if isinstance(values, list) else []


_QUEUED, _IN_PROGRESS = "queued", "in_progress"
# The members that a response gets at its end.
_AT_END = ("completed_at", "error", "incomplete_details", "usage")
# OpenAI has no event for a cancellation. Of the events that end a stream in every client this one is correct; its
# status says that the response was cancelled.
_ENDS = {"incomplete": "response.incomplete", "failed": "response.failed", "cancelled": "response.failed"}
_CREATED = "response.created"
_COMPLETED = "response.completed"
# Each part takes half a dozen events, so many small parts would become much larger. Then the event at the end, which has
# them all, must do.
_MAX_PARTS = 4096
# All languages hold integers up to this exactly.
_MAX_NUMBER = 2**53


class ReplayedStream(StreamRewriter):
    """Passes a response's stream on with changes that are the same on every replay.

    Response objects get other members, events without a number get one, and events up to a number are left out. All other
    events pass as they are, also unreadable ones.
    """

    def __init__(self, changes: Mapping[str, object], *, starting_after: int = -1, is_open: bool = False) -> None:
        """``changes`` are members of the response; ``starting_after`` is the number of the last event to leave out.

        ``is_open`` says that the event with the number 0, ``opening``, went before the stream: the stream's own
        ``response.created`` is then left out, and without one all its numbers are one higher.
        """
        super().__init__()
        self._changes = changes
        self._starting_after = starting_after
        self._last = 0 if is_open else -1
        self._expects_created = is_open
        self._shift = 0

    @property
    def last(self) -> int:
        """The highest number of an event so far, including those that were left out."""
        return max(self._last, self._starting_after)

    def rewrite(self, event: Event) -> bytes:
        """Return an event with its number and the changes, or nothing where it is left out."""
        value = object_or_none(event.data) if may_hold_object(event) else None
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
        """Return an event's number, its own or the one after the last, and whether it must be written."""
        own = value.get("sequence_number")
        if isinstance(own, int) and not isinstance(own, bool) and abs(own) < _MAX_NUMBER:
            number = own + self._shift
            self._last = max(self._last, number)
            return number, bool(self._shift)
        self._last += 1
        return self._last, True


def opening_event(document: bytes) -> bytes:
    """Return the event that opens a stream before its provider has sent any: the queued response."""
    out = EventWriter()
    out.add(_CREATED, {"response": document})
    return out.text()


def to_events(document: bytes) -> bytes:
    """Return the events of a response that was not streamed, each text in one delta.

    A response that has not ended gets the events of its beginning only.

    Raises:
        ValueError: it is not a JSON object.
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
    begun_length = out.length
    try:
        _write_items(out, response.get("output"), document)
    except ValueError:
        # Nested too deeply to be split: the event at the end has all items.
        out.cut_to(begun_length)
    out.add(_end_of(status), {"response": document})
    return out.text()


def _write_items(out: EventWriter, items: object, document: bytes) -> None:
    if not isinstance(items, list) or count_parts(items) > _MAX_PARTS:
        return
    written = array_elements(member_value(document, "output") or b"")
    for index, (item, raw) in enumerate(zip(items, written, strict=True)):
        if isinstance(item, dict):
            write_item(out, index, item, raw)


def end_event(document: bytes, number: int) -> bytes:
    """Return the one event that ends the stream of a response, with a number.

    Raises:
        ValueError: it is not a JSON object.
    """
    response = object_or_none(document)
    if response is None:
        raise ValueError("not a JSON object")
    out = EventWriter(number)
    out.add(_end_of(response.get("status")), {"response": document})
    return out.text()


def _begun(response: Mapping[str, Any], document: bytes) -> bytes:
    """Return a finished response as it was at its beginning."""
    changes: dict[str, bytes | None] = {"status": dump_json(_IN_PROGRESS), "output": b"[]"}
    changes |= {key: b"null" for key in _AT_END if key in response}
    return rewrite_object(document, changes)


def _end_of(status: object) -> str:
    return _ENDS.get(status, _COMPLETED) if isinstance(status, str) else _COMPLETED
