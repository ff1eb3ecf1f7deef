"""JSON as bytes: parsed, written, and cut into the parts that it is made of, each as it was written."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson


def parse_json(data: bytes) -> object:
    """Return the value that some JSON stands for.

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
        # The parser's message may quote the data.
        raise ValueError("not JSON") from None


def dump_json(value: object) -> bytes:
    """Write a value that ``parse_json`` returned, or one made of such, in compact form.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        return json.dumps(value, separators=(",", ":")).encode("ascii")
    except RecursionError:
        raise ValueError("nested too deeply") from None


# Every repeat is possessive: a match never steps back, so the time grows with the length alone.
SPACE = rb"[ \t\n\r]*+"
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# How many containers inside one another a single match passes over whole. A deeper one is walked bracket by bracket,
# where each step may look at the same bytes this many times.
_WHOLE_DEPTH = 6


def _whole_container(depth: int) -> bytes:
    inner = rb"|" + _whole_container(depth - 1) if depth > 1 else b""
    # In valid JSON a bracket is closed by its own kind, so the kinds need not be told apart.
    return rb'[\[{](?:[^"{}\[\]]++|' + STRING + inner + rb")*+[\]}]"


_WHOLE = _whole_container(_WHOLE_DEPTH)
_BEGINNING = re.compile(SPACE + rb"\{" + SPACE)
# A key, and its value too unless that is a deep one.
_MEMBER = re.compile(
    rb"(" + STRING + rb")" + SPACE + rb":" + SPACE
    + rb"(" + STRING + rb'|[^"{}\[\], \t\n\r]++|' + _WHOLE + rb")?+",
    re.DOTALL,
)  # fmt: skip
_NEXT = re.compile(SPACE + rb"(?:,|(\}))" + SPACE)
_DEEP_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|' + STRING + rb"|" + _WHOLE + rb")*+(?:[{\[]|([}\]]))", re.DOTALL)


class Member(NamedTuple):
    """One member: its key as text, and the places of key and value (ends are exclusive)."""

    key: str
    key_start: int
    value_start: int
    value_end: int


def members(body: bytes) -> Iterator[Member]:
    """Yield the members of a JSON object in their order; a duplicate key is yielded twice.

    The bytes must be valid JSON; that is not checked, and nothing here recurses.

    Raises:
        ValueError: the body is not an object, or is cut.
    """
    beginning = _BEGINNING.match(body)
    if beginning is None:
        raise ValueError("not a JSON object")
    position = beginning.end()
    if body.startswith(b"}", position):
        return
    while True:
        member = _MEMBER.match(body, position)
        if member is None:
            raise ValueError("a key was expected")
        value_start, value_end = member.span(2)
        if value_end < 0:
            value_start, value_end = member.end(), _deep_end(body, member.end())
        yield Member(_key_text(member[1]), position, value_start, value_end)
        following = _NEXT.match(body, value_end)
        if following is None:
            raise ValueError("the object does not end")
        if following[1]:
            return
        position = following.end()


def rewrite_object(body: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """Rewrite a JSON object with other values (JSON) for some keys, and without the keys whose value is None.

    All other members keep their bytes; a new key comes last, and a duplicate key that is changed is written once.

    Raises:
        ValueError: the body is not an object, or is cut.
    """
    left = dict(changes)
    parts: list[bytes] = []
    for member in members(body):
        if member.key not in changes:
            parts.append(body[member.key_start : member.value_end])
        elif (value := left.pop(member.key, None)) is not None:
            parts.append(body[member.key_start : member.value_start] + value)
    parts += [json.dumps(key).encode() + b":" + value for key, value in left.items() if value is not None]
    return b"{" + b",".join(parts) + b"}"


def with_changes(document: bytes, changes: Mapping[str, object]) -> bytes:
    """Rewrite a JSON object with other values, given as Python values, for some members.

    Raises:
        ValueError: the document is not an object, or a value is nested too deeply.
    """
    if not changes:
        return document
    return rewrite_object(document, {key: dump_json(value) for key, value in changes.items()})


def _deep_end(body: bytes, start: int) -> int:
    """Return the end of the container that begins at ``start``."""
    if not body.startswith((b"{", b"["), start):
        raise ValueError("a value was expected")
    depth = 1
    for bracket in _DEEP_BRACKET.finditer(body, start + 1):
        depth += -1 if bracket[1] else 1
        if not depth:
            return bracket.end()
    raise ValueError("a value does not end")


def _key_text(token: bytes) -> str:
    if b"\\" in token:
        return str(json.loads(token.decode("utf-8")))
    return token[1:-1].decode("utf-8")


_SPACE = re.compile(r"[ \t\n\r]*+")
# Only the ends of values matter, so numbers are not converted, however long they are.
_VALUES = json.JSONDecoder(parse_int=len, parse_float=len)


def object_or_none(data: bytes) -> dict[str, Any] | None:
    """Return the object that some JSON stands for; None where it is another value, or not JSON."""
    if not data:
        return None
    try:
        value = parse_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def member_value(body: bytes, key: str) -> bytes | None:
    """Return the value of a key as it is written, the last of duplicates, as most readers do; None without the key.

    Raises:
        ValueError: the body is not an object, or is cut.
    """
    found = None
    for member in members(body):
        if member.key == key:
            found = body[member.value_start : member.value_end]
    return found


def array_elements(array: bytes) -> list[bytes]:
    """Return the elements of a JSON array as they are written.

    Raises:
        ValueError: it is not an array, or is nested too deeply.
    """
    try:
        return _elements(array.decode("utf-8"))
    except (ValueError, RecursionError):
        # The decoder's error quotes the text.
        raise ValueError("not a JSON array") from None


def _elements(text: str) -> list[bytes]:
    position = _after_space(text, 0)
    if not text.startswith("[", position):
        raise ValueError
    position = _after_space(text, position + 1)
    found: list[bytes] = []
    closed = text.startswith("]", position)
    while not closed:
        _, end = _VALUES.raw_decode(text, position)
        found.append(text[position:end].encode("utf-8"))
        position = _after_space(text, end)
        closed = text.startswith("]", position)
        if not closed:
            if not text.startswith(",", position):
                raise ValueError
            position = _after_space(text, position + 1)
    if _after_space(text, position + 1) != len(text):
        raise ValueError
    return found


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()
