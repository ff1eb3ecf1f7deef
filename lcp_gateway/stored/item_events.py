"""The events that tell of one finished output item: what a stream would have said of it, each part in one piece."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lcp_gateway.adapters.members import rewrite
from lcp_gateway.stored.slices import elements, member_of, write

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


def pieces(items: list[Any]) -> int:
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
        name = member_of(raw, "name")
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
    return member_of(raw, key) if isinstance(holder.get(key), str) else None


def _parts(
    holder: Mapping[str, Any], raw: bytes, key: str
) -> list[tuple[Mapping[str, Any], bytes]]:
    """Give the objects in a list, each as it is read and as it is written."""
    values = _listed(holder, key)
    written = elements(member_of(raw, key) or b"") if values else []
    return [
        (value, text)
        for value, text in zip(values, written, strict=True)
        if isinstance(value, dict)
    ]


def _array(raw: bytes, holder: Mapping[str, Any], key: str) -> bytes:
    return (member_of(raw, key) or b"[]") if _listed(holder, key) else b"[]"


def _without(raw: bytes, holder: Mapping[str, Any], empty: Mapping[str, bytes]) -> bytes:
    changes = {key: value for key, value in empty.items() if holder.get(key) is not None}
    return rewrite(raw, changes) if changes else raw


def _item_id(item: Mapping[str, Any]) -> bytes:
    """Give an item's id; every event names one, so it is empty where the item has none."""
    given = item.get("id")
    return write(given) if isinstance(given, str) and len(given) <= _MAX_ID_CHARS else _NO_TEXT


def _listed(holder: object, key: str) -> list[Any]:
    values = holder.get(key) if isinstance(holder, dict) else None
    return values if isinstance(values, list) else []
