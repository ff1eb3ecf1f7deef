"""Streams of chat and of Responses, generated from a seed: in every valid spelling, and malformed in many ways."""

import json
import random
from dataclasses import dataclass

from tests.support.raw_node import End, Scripted

WORDS = ("error", "completed", "data: [DONE]", "é", "\u2028", "event: response.completed", " ", "\n\n", "")


@dataclass(frozen=True)
class Generated:
    """A stream and how it was malformed; ``is_chat`` distinguishes chat from Responses."""

    what: str
    is_chat: bool
    scripted: Scripted


def well_formed(seed: int, count: int) -> list[Generated]:
    chance = random.Random(seed)
    return [_well_formed(chance, is_chat=number % 2 == 0) for number in range(count)]


def ill_formed(seed: int, count: int) -> list[Generated]:
    chance = random.Random(seed)
    return [_ill_formed(chance, is_chat=number % 2 == 0) for number in range(count)]


def _well_formed(chance: random.Random, *, is_chat: bool) -> Generated:
    events = _chat(chance) if is_chat else _responses(chance)
    end = chance.choices(list(End), (8, 1, 2, 2))[0]
    if is_chat and end is End.TIDY and chance.random() < 0.3:
        events.pop()
        what = f"no mark, {end}"
    else:
        what = f"mark, {end}"
    stream = _written(chance, events)
    if chance.random() < 0.3:
        # OpenAI's reader takes an empty line for an event once it has seen an id.
        end_of_comment = b"\n" if b"id:" in stream else b"\n\n"
        stream += (b": bye" + end_of_comment) * chance.choice([1, 1_300])
    return Generated(what, is_chat, Scripted(_cut(chance, stream), end))


def _ill_formed(chance: random.Random, *, is_chat: bool) -> Generated:
    events = _chat(chance) if is_chat else _responses(chance)
    ways = {
        "cut": lambda: _cut_off(chance, events),
        "error in place": lambda: [_error(is_chat), events[-1]],
        "error in the middle": lambda: [*_some(chance, events), _error(is_chat), *events[-2:]],
        "error at the end": lambda: [*events[:-1], _error(is_chat)],
        "failed": lambda: _failed(is_chat, events),
        "nothing": list,
        "only a mark": lambda: [("", "[DONE]")],
    }
    raw_ways = {
        "white space": b" \n\r\n\n",
        "comments": b": ping\n\n" * 9,
        "page": b"<!DOCTYPE html>\n\n<html>Log in</html>",
        "json error": b'{"error":{"message":"no","type":"x","param":null,"code":"no"}}',
        "text": b"upstream connect error or disconnect",
    }
    what = chance.choice([*ways, *ways, "cut", *raw_ways])
    if what in raw_ways:
        stream, end = raw_ways[what], chance.choice([End.TIDY, End.CLOSE])
    else:
        stream = _written(chance, ways[what](), may_begin=what != "nothing")
        end = chance.choice([End.TIDY, End.LOST, End.CLOSE])
        if what == "cut" and end is End.TIDY and chance.random() < 0.5 and len(stream) > 9:
            stream = stream[: -chance.randint(1, 9)]
    content_type = chance.choice(["text/event-stream", "text/html", "application/json"])
    if what not in raw_ways:
        content_type = "text/event-stream"
    return Generated(f"{what}, {end}", is_chat, Scripted(_cut(chance, stream), end, content_type))


# What is said.


def _chat(chance):
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    shapes = [{"role": "assistant", "content": ""}]
    for _ in range(chance.randint(0, 6)):
        shapes.append({"content": chance.choice(WORDS) + str(chance.random())})
    if chance.random() < 0.2:
        call = {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        shapes.append({"tool_calls": [call]})
    chunks = [{**base, "choices": [_choice(delta, None)]} for delta in shapes]
    chunks.append({**base, "choices": [_choice({}, chance.choice(["stop", "length", "tool_calls"]))]})
    if chance.random() < 0.5:
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        chunks.append({**base, "choices": [], "usage": usage})
    if chance.random() < 0.3:
        chunks = [{**chunk, "error": None} for chunk in chunks]
    return [("", chunk) for chunk in chunks] + [("", "[DONE]")]


def _choice(delta, finish):
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _responses(chance):
    response = {"id": "r1", "object": "response", "created_at": 1, "model": "m", "error": None, "output": [],
                "status": "in_progress", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
    place = {"item_id": "i1", "output_index": 0, "content_index": 0, "logprobs": []}
    named_events = [("response.created", {"response": response})]
    for _ in range(chance.randint(0, 6)):
        text = chance.choice(WORDS) + str(chance.random())
        named_events.append(("response.output_text.delta", {**place, "delta": text}))
    kind = chance.choice(["completed", "completed", "incomplete"])
    named_events.append((f"response.{kind}", {"response": {**response, "status": kind}}))
    return [
        (name, {"type": name, "sequence_number": number, **value}) for number, (name, value) in enumerate(named_events)
    ]


def _error(is_chat):
    if is_chat:
        return ("", {"error": {"message": "no", "type": "server_error", "param": None, "code": "no"}})
    return ("error", {"type": "error", "code": "no", "message": "no", "param": None, "sequence_number": 9})


def _failed(is_chat, events):
    name, last = events[-1] if not is_chat else events[-2]
    if is_chat:
        return [*events[:-2], (name, {**last, "choices": [_choice({}, "error")]}), events[-1]]
    response = {**last["response"], "status": "failed", "error": {"code": "server_error", "message": "no"}}
    return [*events[:-1], ("response.failed", {**last, "type": "response.failed", "response": response})]


def _some(chance, events):
    return events[: chance.randint(1, max(1, len(events) - 2))]


def _cut_off(chance, events):
    """Leave out the end, with every mark that the answer is finished."""
    finishes = next(
        number
        for number, (name, value) in enumerate(events)
        if name in ("response.completed", "response.incomplete")
        or (isinstance(value, dict) and any(c["finish_reason"] for c in value.get("choices", ())))
    )
    return events[: chance.randint(1, finishes)]


# How it is written.


def _written(chance, events, *, may_begin=True):
    end = chance.choice([b"\n", b"\n", b"\r\n", b"\r"])
    colon = chance.choice([b": ", b": ", b":"])
    names = chance.random() < 0.6
    sort = chance.random() < 0.3
    spaced = chance.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
    ascii_only = chance.random() < 0.5
    indent = 1 if chance.random() < 0.15 else None
    out = [b": hello" + end * 2] if may_begin and chance.random() < 0.2 else []
    for number, (name, value) in enumerate(events):
        lines = []
        if chance.random() < 0.05:
            lines.append(b": note")
        if chance.random() < 0.1:
            lines.append(b"id" + colon + b"%d" % number)
        if chance.random() < 0.05:
            lines.append(b"retry" + colon + b"1500")
        if name and names:
            lines.append(b"event" + colon + name.encode())
        text = (
            value
            if isinstance(value, str)
            else json.dumps(value, sort_keys=sort, separators=spaced, ensure_ascii=ascii_only, indent=indent)
        )
        lines += [b"data" + colon + line.encode() for line in text.split("\n")]
        if name and names and chance.random() < 0.2:
            lines.reverse() if len(lines) == 2 else None
        out.append(b"".join(line + end for line in lines) + end)
    return b"".join(out)


def _cut(chance, stream):
    pieces, at = [], 0
    while at < len(stream):
        size = chance.choice([1, 7, 60, 300, 5_000])
        pieces.append(stream[at : at + size])
        at += size
    return tuple(pieces)
