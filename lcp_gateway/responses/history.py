"""Chains of responses: the earlier turns' items put before the new input, as the JSON text that they came in.

A turn's items are kept as one segment: the JSON of an array without its brackets. Segments are shared by all later
turns of a conversation, and nothing in them is read or written anew.
"""

from collections.abc import Iterable, Sequence

from lcp_gateway.adapters.json_bytes import members, rewrite_object

_WHITE = b" \t\n\r"
_INPUT = "input"
_PREVIOUS = "previous_response_id"
_BACKGROUND = "background"


def input_segment(body: bytes) -> bytes:
    """Give the input items of a request for a response; a text is a message of the user. Empty where there is none.

    Raises:
        ValueError: the body is no JSON object.
    """
    values = [
        body[member.value_start : member.value_end]
        for member in members(body)
        if member.key == _INPUT
    ]
    # Of a key that stands twice most readers take the last.
    value = values[-1] if values else b""
    if value.startswith(b'"'):
        return b'{"type":"message","role":"user","content":' + value + b"}"
    return array_segment(value)


def array_segment(array: bytes) -> bytes:
    """Give what stands between the brackets of an array; empty for anything else."""
    text = array.strip(_WHITE)
    if not (text.startswith(b"[") and text.endswith(b"]")):
        return b""
    return text[1:-1].strip(_WHITE)


def join_segments(segments: Iterable[bytes]) -> bytes:
    """Give the array of all items of some segments."""
    return b"[" + b",".join(filter(None, segments)) + b"]"


def request_for_provider(
    body: bytes, context: Sequence[bytes] | None, *, without_background: bool = False
) -> bytes:
    """Write the request that a provider gets, which knows neither earlier responses nor the background.

    ``context`` are the segments before the new input; None leaves the input as it is. All other members keep their bytes.

    Raises:
        ValueError: the body is no JSON object.
    """
    changes: dict[str, bytes | None] = {}
    if context is not None:
        changes[_INPUT] = join_segments((*context, input_segment(body)))
        changes[_PREVIOUS] = None
    if without_background:
        changes[_BACKGROUND] = None
    return rewrite_object(body, changes) if changes else body


def messages_segment(body: bytes) -> bytes:
    """Give the messages of a chat request. Empty where there are none.

    Raises:
        ValueError: the body is no JSON object.
    """
    values = [
        body[member.value_start : member.value_end]
        for member in members(body)
        if member.key == "messages"
    ]
    return array_segment(values[-1]) if values else b""
