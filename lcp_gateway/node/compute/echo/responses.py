"""The shapes of Responses: one object, or a stream of numbered events that ends with the finished object."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson

from lcp_gateway.node.compute.base import Work
from lcp_gateway.node.compute.echo.reply import Reply
from lcp_gateway.node.compute.echo.tokens import paced

_ECHOED: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""The parts of a response that repeat the request, and what they are when it leaves them out."""


def response(work: Work, reply: Reply) -> bytes:
    """Give a whole ``response``."""
    return orjson.dumps(_finished(work, reply))


async def events(work: Work, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Give a stream, one event a token: created, the output item as it grows, and completed or incomplete."""
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        body = orjson.dumps({"type": kind, "sequence_number": number, **fields})
        number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    started = _response(work, "in_progress", [], None)
    yield event("response.created", response=started)
    yield event("response.in_progress", response=started)
    is_call = reply.tool is not None
    item = _item(work, reply)
    place: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    blank: dict[str, Any] = {"arguments": ""} if is_call else {"content": []}
    yield event(
        "response.output_item.added",
        output_index=0,
        item={**item, **blank, "status": "in_progress"},
    )
    if not is_call:
        place["content_index"] = 0
        yield event("response.content_part.added", **place, part=_part(""))
    kind = "response.function_call_arguments.delta" if is_call else "response.output_text.delta"
    start = b'event: %b\ndata: {"type":"%b",' % (kind.encode(), kind.encode())
    end = b"," + orjson.dumps(place if is_call else {**place, "logprobs": []})[1:] + b"\n\n"
    async for token in paced(reply.tokens, work.tokens_per_second):
        yield b'%b"sequence_number":%d,"delta":%b%b' % (start, number, orjson.dumps(token), end)
        number += 1
    if is_call:
        yield event(
            "response.function_call_arguments.done", **place, name=reply.tool, arguments=reply.text
        )
    else:
        yield event("response.output_text.done", **place, text=reply.text, logprobs=[])
        yield event("response.content_part.done", **place, part=_part(reply.text))
    yield event("response.output_item.done", output_index=0, item=item)
    finished = _finished(work, reply)
    yield event(f"response.{finished['status']}", response=finished)


def _finished(work: Work, reply: Reply) -> dict[str, Any]:
    status = "incomplete" if reply.cut else "completed"
    return _response(work, status, [_item(work, reply)], _usage(work, reply))


def _response(
    work: Work, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    document = work.task.document
    repeated = {
        key: default if document.get(key) is None else document[key]
        for key, default in _ECHOED.items()
    }
    return {
        "id": f"resp_{work.job_id[:24].hex()}",
        "object": "response",
        "created_at": work.created_at,
        "status": status,
        "completed_at": work.created_at if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": work.task.model,
        "output": output,
        "service_tier": "default",
        "usage": usage,
        **repeated,
    }


def _item(work: Work, reply: Reply) -> dict[str, Any]:
    status = "incomplete" if reply.cut else "completed"
    if reply.tool is not None:
        return {
            "id": f"fc_{work.job_id[:24].hex()}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{work.job_id[:12].hex()}",
            "name": reply.tool,
            "arguments": reply.text,
        }
    return {
        "id": f"msg_{work.job_id[:24].hex()}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_part(reply.text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(work: Work, reply: Reply) -> dict[str, Any]:
    prompt = work.task.prompt_tokens
    output = len(reply.tokens)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + output,
    }
