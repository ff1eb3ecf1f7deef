"""What a request needs of a model, read from its body."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lcp_gateway.purchase.task import TaskKind, output_limit

_BYTES_PER_TOKEN = 4
# About what models count for an image, whatever the size of its encoding.
_TOKENS_PER_IMAGE = 1_000
_LONG_TEXT = 256
_IMAGES = frozenset({"image_url", "input_image", "image"})
_AUDIO = frozenset({"input_audio", "audio"})


@dataclass(frozen=True, slots=True)
class Needs:
    """Capabilities that the request uses, and the context that it fills: its own tokens and those it allows."""

    capabilities: frozenset[str] = frozenset()
    tokens: int = 0


def needs_of(kind: TaskKind, document: Mapping[str, Any], body_bytes: int) -> Needs:
    """Read them. Whatever is not shaped as expected needs nothing: the provider will say so itself."""
    found: set[str] = set()
    tools = document.get("tools") or document.get("functions")
    if isinstance(tools, list) and tools and document.get("tool_choice") != "none":
        found.add("tools")
    if _asks_for_schema(kind, document):
        found.add("json_schema")
    tokens = body_bytes // _BYTES_PER_TOKEN
    for part in _parts(document):
        type_ = part.get("type")
        if type_ in _IMAGES or type_ in _AUDIO:
            found.add("vision" if type_ in _IMAGES else "audio")
            tokens += _TOKENS_PER_IMAGE - _encoded_bytes(part) // _BYTES_PER_TOKEN
    return Needs(frozenset(found), max(0, tokens + output_limit(document)))


def _asks_for_schema(kind: TaskKind, document: Mapping[str, Any]) -> bool:
    if kind is TaskKind.RESPONSES:
        text = document.get("text")
        form = text.get("format") if isinstance(text, dict) else None
    else:
        form = document.get("response_format")
    return isinstance(form, dict) and form.get("type") == "json_schema"


def _parts(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    messages = document.get("messages")
    if not isinstance(messages, list):
        messages = document.get("input")
    if not isinstance(messages, list):
        return
    for message in messages:
        if not isinstance(message, dict):
            continue
        yield message
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _encoded_bytes(part: Mapping[str, Any]) -> int:
    """Give the length of what is encoded in a part, which is no text for the model to read."""
    total = 0
    for value in part.values():
        inner = value.values() if isinstance(value, dict) else (value,)
        total += sum(
            len(text) for text in inner if isinstance(text, str) and len(text) > _LONG_TEXT
        )
    return total
