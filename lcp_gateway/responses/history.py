"""Conversations: the items of earlier turns are put before the new input, as the JSON text that they came in.

A turn's items are one segment: the JSON of an array without its brackets. All later turns share it, and it is neither parsed
nor rewritten.
"""

from collections.abc import Iterable, Sequence

from lcp_gateway.adapters.json_bytes import member_value, rewrite_object

_WHITE = b" \t\n\r"
_INPUT = "input"
_PREVIOUS = "previous_response_id"
_BACKGROUND = "background"


def input_segment(body: bytes) -> bytes:
    """Return the input items of a request for a response; a text is a user message. Empty without input.

    Raises:
        ValueError: the body is not a JSON object.
    """
    value = member_value(body, _INPUT) or b""
    if value.startswith(b'"'):
        return b'{"type":"message","role":"user","content":' + value + b"}"
    return array_segment(value)


def array_segment(array: bytes) -> bytes:
    """Return the text between the brackets of an array; empty for any other value."""
    text = array.strip(_WHITE)
    if not (text.startswith(b"[") and text.endswith(b"]")):
        return b""
    return text[1:-1].strip(_WHITE)


def join_segments(segments: Iterable[bytes]) -> bytes:
    """Return the array of all items of some segments."""
    return b"[" + b",".join(filter(None, segments)) + b"]"


def request_for_provider(body: bytes, context: Sequence[bytes] | None, *, without_background: bool = False) -> bytes:
    """Return the request for a provider, which has neither earlier responses nor background jobs.

    ``context`` are the segments before the new input; None leaves the input as it is. All other members keep their bytes.

    Raises:
        ValueError: the body is not a JSON object.
    """
    changes: dict[str, bytes | None] = {}
    if context is not None:
        changes[_INPUT] = join_segments((*context, input_segment(body)))
        changes[_PREVIOUS] = None
    if without_background:
        changes[_BACKGROUND] = None
    return rewrite_object(body, changes) if changes else body


def messages_segment(body: bytes) -> bytes:
    """Return the messages of a chat request. Empty without any.

    Raises:
        ValueError: the body is not a JSON object.
    """
    return array_segment(member_value(body, "messages") or b"")
