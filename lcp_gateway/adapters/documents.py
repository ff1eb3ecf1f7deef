"""What bodies are: JSON values, also such as orjson refuses (the halves of surrogate pairs), and streams of events."""

import json

import orjson


def parse_json(data: bytes) -> object:
    """Give the value that JSON stands for.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        # The parser's own message may hold text of the data.
        raise ValueError("not JSON") from None


def dump_json(value: object) -> bytes:
    """Write a value that ``parse_json`` gave, or one made of such, in compact form."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def is_event_stream(content_type: str) -> bool:
    """Tell whether a content type is server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"
