"""The vectors of tests/vectors/lcp: encodings of the Go daemon, and dialogues that real daemons had, for both versions."""

import functools
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from lcp_gateway.node.lcp.messages import JobMessage, Protocol

_FOLDER = Path(__file__).parents[1] / "vectors" / "lcp"
_SUFFIX = {Protocol.V02: "", Protocol.V03: "_v03"}

_SAME = {
    "call_id": "job_id",
    "method": "task_kind",
    "supported_tasks": "tasks",
    "supported_methods": "tasks",
    "max_call_bytes": "max_job_bytes",
    "max_inflight_calls": "max_inflight_jobs",
}
_OF_RESULT = {
    f"{word}_{there}": here
    for word in ("result", "response")
    for there, here in {
        "stream_id": "stream_id",
        "hash": "sha256",
        "len": "total_len",
        "content_type": "content_type",
        "content_encoding": "content_encoding",
    }.items()
}
_BYTES = {"job_id", "msg_id", "stream_id", "sha256", "terms_hash", "params", "data", "docs_sha256"}


@functools.cache
def encodings(protocol: Protocol) -> dict:
    return _load(f"wire_vectors{_SUFFIX[protocol]}")


@functools.cache
def dialogues(protocol: Protocol) -> dict:
    return _load(f"dialogues{_SUFFIX[protocol]}")


def messages(protocol: Protocol) -> Iterator[tuple[str, dict]]:
    """Yield each recorded custom message with the name of its dialogue."""
    for dialogue in dialogues(protocol)["dialogues"]:
        for message in dialogue["messages"]:
            if "hex" in message:
                yield dialogue["name"], message


def attributes(kind: str, fields: dict) -> dict:
    """Return a vector's fields by the names that the classes here give them."""
    named = {}
    for name, value in _whole(fields).items():
        here = _OF_RESULT.get(name, name) if kind in {"result", "complete"} else name
        here = _SAME.get(here, here)
        if here == "tasks":
            named[here] = tuple(attributes("template", one) for one in value)
        elif isinstance(value, list):
            named[here] = tuple(value)
        elif here in _BYTES and isinstance(value, str):
            named[here] = bytes.fromhex(value)
        else:
            named[here] = value
    return named


def _whole(fields: dict) -> dict:
    """Write out values that a vector gives as a repeated piece."""
    whole = dict(fields)
    for name in [one for one in fields if one.endswith("_repeated")]:
        base = name.removesuffix("_repeated")
        whole[base] = whole.pop(name) * whole.pop(f"{base}_count")
    return whole


def held(message: object) -> dict:
    """Return the attributes of a message that are set, its templates as dicts."""
    found = {}
    for name in _slots(type(message)):
        value = getattr(message, name)
        if name == "tasks":
            value = tuple(held(one) for one in value)
        if value is not None and value != ():
            found[name] = value
    return found


def _slots(kind: type) -> tuple[str, ...]:
    inherited = JobMessage.__slots__ if issubclass(kind, JobMessage) else ()
    return tuple(dict.fromkeys((*inherited, *kind.__slots__)))


def _load(name: str) -> dict:
    with lzma.open(_FOLDER / f"{name}.json.xz", "rt", encoding="utf-8") as file:
        return json.load(file)
