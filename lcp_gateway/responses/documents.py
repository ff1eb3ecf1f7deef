"""The document of a result: the response or chat completion in a provider's bytes, whole or streamed, and its id.

Providers are not trusted: any bytes are read in time proportional to their length, and result in a document or a
ValueError.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lcp_gateway.adapters.json_bytes import array_elements, dump_json, member_value, object_or_none, rewrite_object
from lcp_gateway.adapters.sse import Event, EventReader, object_events
from lcp_gateway.responses.chats import ChatAssembly

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ITEM_DONE = "response.output_item.done"
# Printable ASCII without the slash, since an id is part of a path.
_VALID_ID = re.compile(r"[!-.0-~]{1,256}")
_PATH_DOTS = (".", "..")
# The id is in the first event. The bytes to read for it,
_ID_BYTES = 256 * 1024
# and the bytes where that event itself is so long, since it repeats many tools.
_LONG_EVENT_BYTES = 4 * 1024 * 1024
_STEP_BYTES = 2 * 1024


def find_id(blocks: Iterable[bytes], stream: bool) -> str | None:
    """Return the id of a response or a chat completion; None without one that can be part of a path.

    Of a stream it reads only the beginning, so it can be called before the end has come.
    """
    if not stream:
        return _valid_id(_id_in(object_or_none(b"".join(blocks))))
    for event in _first_events(blocks):
        given = _id_in(object_or_none(event.data))
        if given is not None:
            return _valid_id(given)
    return None


def response_document(blocks: Sequence[bytes], stream: bool) -> bytes:
    """Return the finished response, as it is written in the event that ends the stream.

    If that event has no output, it is assembled from the events of the items.

    Raises:
        ValueError: it is not a JSON object, or the stream has no such event.
    """
    if not stream:
        return _whole_object(blocks)
    last = b""
    has_output = False
    items: dict[int, bytes] = {}
    for event in object_events(blocks):
        value = object_or_none(event.data)
        if value is None:
            continue
        kind = _kind(event, value)
        response = value.get("response")
        if kind in _ENDS and isinstance(response, dict):
            last, has_output = event.data, bool(response.get("output"))
        elif kind == _ITEM_DONE and isinstance(value.get("item"), dict):
            index = value.get("output_index")
            items[index if isinstance(index, int) else len(items)] = event.data
    document = member_value(last, "response") if last else None
    if document is None:
        raise ValueError("the stream has no finished response")
    if has_output or not items:
        return document
    parts = (member_value(items[index], "item") for index in sorted(items))
    return rewrite_object(document, {"output": b"[" + b",".join(filter(None, parts)) + b"]"})


def response_output(document: bytes) -> bytes:
    """Return the text between the brackets of a response's output; empty without output.

    Raises:
        ValueError: the output is not an array, or the document not an object.
    """
    output = member_value(document, "output")
    if output is None or output == b"null":
        return b""
    # It is put between the items of a request, so it must be valid.
    array_elements(output)
    return output[1:-1].strip(b" \t\n\r")


def chat_document(blocks: Sequence[bytes], stream: bool) -> bytes:
    """Return the chat completion; of a stream, the one that its chunks make together.

    Raises:
        ValueError: it is not a JSON object, or the stream has no chunk.
    """
    if not stream:
        return _whole_object(blocks)
    assembly = ChatAssembly()
    for event in object_events(blocks):
        chunk = object_or_none(event.data)
        if chunk is not None:
            assembly.add(chunk)
    if not assembly.begun:
        raise ValueError("the stream has no chunk of a chat completion")
    return dump_json(assembly.document())


def _whole_object(blocks: Iterable[bytes]) -> bytes:
    body = b"".join(blocks)
    if object_or_none(body) is None:
        raise ValueError("not a JSON object")
    return body


def _first_events(blocks: Iterable[bytes]) -> Iterable[Event]:
    reader = EventReader()
    read_bytes = 0
    limit = _LONG_EVENT_BYTES
    for block in blocks:
        for start in range(0, len(block), _STEP_BYTES):
            step = block[start : start + _STEP_BYTES]
            for event in reader.feed(step):
                if event.data:
                    limit = _ID_BYTES
                yield event
            read_bytes += len(step)
            if read_bytes >= limit:
                return


def _kind(event: Event, value: dict[str, Any]) -> str:
    """Return an event's type as its data has it, or else its name."""
    kind = value.get("type")
    return kind if isinstance(kind, str) else event.name


def _id_in(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    response = value.get("response")
    given = (response if isinstance(response, dict) else value).get("id")
    return given if isinstance(given, str) else None


def _valid_id(given: str | None) -> str | None:
    if given is None or given in _PATH_DOTS or _VALID_ID.fullmatch(given) is None:
        return None
    return given
