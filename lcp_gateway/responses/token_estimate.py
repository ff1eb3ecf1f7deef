"""An estimate of the tokens of a request's input, for models whose tokenizer is not available.

Code points are counted by class, each with its average in OpenAI's two common vocabularies (o200k_base and cl100k_base) over
prose in a dozen languages, source code, JSON and logs. Latin script, code and JSON come out within about a third; other
scripts lie between the newer vocabulary and the older, which takes two to three times as many. Images and files have fixed
costs. The work is linear, at some hundred megabytes a second.
"""

from collections.abc import Iterable, Mapping
from string import ascii_letters, digits, punctuation
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json

# Thousandths of a token for each code point of a class, which the first byte of its UTF-8 determines.
_ASCII_CLASSES: tuple[tuple[bytes, int], ...] = (
    (ascii_letters.encode(), 235),
    (digits.encode(), 550),
    (punctuation.encode(), 500),
    # With the indentation that follows it. A space is part of the word after it.
    (b"\n", 1_000),
)
_OTHER_CLASSES: tuple[tuple[bytes, int], ...] = (
    # Latin letters with marks, each of which cuts its word.
    (bytes(range(0xC2, 0xCA)), 1_000),
    # Greek, Cyrillic, Hebrew, Arabic.
    (bytes(range(0xCA, 0xE0)), 500),
    # The scripts of India and of South-East Asia, typographic signs.
    (bytes(range(0xE0, 0xE3)), 650),
    # Chinese, Japanese, Korean.
    (bytes(range(0xE3, 0xF0)), 900),
    # Emoji and rare signs.
    (bytes(range(0xF0, 0xF8)), 2_500),
)
_MILLI = 1_000

# The frame of a message with its role, and the opening of the answer.
_MESSAGE = 4
_OPENING = 3
# A small image; else one of about 1,024 by 1,024 pixels, since images are not decoded here.
_IMAGE_LOW = 85
_IMAGE_HIGH = 765
# A page of a document, whose text and picture a model gets, when its size is unknown.
_FILE = 1_500
_FILE_CHARS_PER_TOKEN = 64
# Ten tokens a second, for sound that is compressed as usual.
_AUDIO_CHARS_PER_TOKEN = 2_048
# The rest of a longer list is counted as JSON text, which is fast.
_LOOKED_INTO = 10_000

# The least share of letters in the bytes of prose without its spaces; tables, logs and escapes have fewer.
_PROSE_LETTERS = 0.8

_TEXTS = ("text", "refusal", "transcript")
_IMAGES = frozenset({"input_image", "image_url", "computer_screenshot"})
_FILES = frozenset({"input_file", "file"})
_SCHEMAS = ("tools", "functions", "response_format", "text")


def estimate_input_tokens(document: Mapping[str, Any]) -> int:
    """Estimate the tokens of a request for a response or a chat completion; no value of a field makes it fail."""
    tokens = _OPENING
    if instructions := document.get("instructions"):
        tokens += _MESSAGE + _content(instructions)
    for name in ("input", "messages"):
        subject = document.get(name)
        if isinstance(subject, str):
            tokens += _MESSAGE + text_tokens(subject)
        elif isinstance(subject, list):
            tokens += sum(map(_item, subject[:_LOOKED_INTO])) + _rest(subject)
    return tokens + sum(_json(document[name]) for name in _SCHEMAS if document.get(name))


def clearly_exceeds(document: Mapping[str, Any], body: bytes, tokens: int) -> bool:
    """Return whether a request's input certainly has more than so many tokens, so that it can be refused.

    The estimate is low rather than high for text in Latin letters; for any other it may be twice too high.
    """
    if len(body) <= tokens:
        return False
    estimated = estimate_input_tokens(document)
    prompt = document.get("prompt")
    if isinstance(prompt, str):
        estimated += text_tokens(prompt)
    letters = _count(body, ascii_letters.encode())
    is_prose = letters >= _PROSE_LETTERS * len(body.translate(None, b" "))
    return (estimated if is_prose else estimated // 2) > tokens


def text_tokens(text: str) -> int:
    """Estimate the tokens of a text, rounded up."""
    # Half a surrogate pair has no UTF-8 encoding.
    data = text.encode("utf-8", "surrogatepass")
    classes = _ASCII_CLASSES if len(data) == len(text) else _ASCII_CLASSES + _OTHER_CLASSES
    thousandths = sum(_count(data, members) * each for members, each in classes)
    return -(-thousandths // _MILLI)


def _count(data: bytes, members: bytes) -> int:
    if len(members) == 1:
        return data.count(members)
    return len(data) - len(data.translate(None, members))


def _item(item: Any) -> int:
    """Count a message, a call of a tool, or any other input item."""
    if not isinstance(item, dict):
        return _json(item)
    tokens = _MESSAGE + _content(item.get("content"))
    match item.get("type"):
        case "function_call" | "custom_tool_call":
            tokens += _strings(item, ("name", "arguments", "input"))
        case "function_call_output" | "custom_tool_call_output" | "computer_call_output":
            tokens += _content(item.get("output"))
        case "reasoning":
            tokens += _content(item.get("summary"))
        case None | "message":
            tokens += _strings(item, ("name", *_TEXTS))
            if calls := item.get("tool_calls") or item.get("function_call"):
                tokens += _json(calls)
        case _ if "content" not in item:
            tokens += _json(item)
    return tokens


def _content(content: Any) -> int:
    if isinstance(content, str):
        return text_tokens(content)
    if isinstance(content, list):
        return sum(map(_part, content[:_LOOKED_INTO])) + _rest(content)
    return _part(content) if content else 0


def _part(part: Any) -> int:
    if not isinstance(part, dict):
        return _json(part)
    kind = part.get("type")
    if not isinstance(kind, str):
        kind = ""
    inner = part.get(kind)
    inside: Mapping[str, Any] = inner if isinstance(inner, dict) else part
    if kind in _IMAGES:
        return _IMAGE_LOW if inside.get("detail") == "low" else _IMAGE_HIGH
    if kind in _FILES:
        data = inside.get("file_data")
        return len(data) // _FILE_CHARS_PER_TOKEN if isinstance(data, str) else _FILE
    if kind == "input_audio":
        data = inside.get("data")
        return len(data) // _AUDIO_CHARS_PER_TOKEN if isinstance(data, str) else 0
    if any(name in part for name in _TEXTS):
        return _strings(part, _TEXTS)
    return _json(part)


def _strings(item: Mapping[str, Any], names: Iterable[str]) -> int:
    values = (item.get(name) for name in names)
    return sum(text_tokens(value) for value in values if isinstance(value, str))


def _rest(values: list[Any]) -> int:
    return _json(values[_LOOKED_INTO:]) if len(values) > _LOOKED_INTO else 0


def _json(value: Any) -> int:
    try:
        text = dump_json(value)
    except ValueError:
        # Nested too deeply; the provider will refuse it.
        return 0
    return text_tokens(text.decode("utf-8", "surrogatepass"))
