"""The echo backend: repeats the request's text, deterministic and free, in the exact shapes that OpenAI clients expect."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from lcp_gateway.node.compute.echo_reply import Reply, compose, paced
from lcp_gateway.node.compute.tasks import Task, read_body
from lcp_gateway.node.lcp.messages import CHAT


def chat_completion(task: Task, reply: Reply) -> bytes:
    """Return a whole ``chat.completion``."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if reply.tool is None:
        message["content"] = reply.text
        message["annotations"] = []
    choices = []
    for index in range(task.choices):
        with_call = message
        if reply.tool is not None:
            with_call = {**message, "tool_calls": [_tool_call(task, reply, index)]}
        choices.append({"index": index, "message": with_call, "logprobs": None, "finish_reason": _finish_reason(reply)})
    return orjson.dumps({**_head(task, "chat.completion"), "choices": choices, "usage": _chat_usage(task, reply)})


async def chat_chunks(task: Task, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Yield a stream, one event a token: the role, the tokens of each choice, its finish, usage if requested."""
    head = orjson.dumps(_head(task, "chat.completion.chunk"))[:-1] + b',"choices":['
    options = task.document.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    tail = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def event(index: int, delta: bytes, finish: bytes = b"null") -> bytes:
        return (
            b'data: %b{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}%b'
            % (head, index, delta, finish, tail)
        )  # fmt: skip

    dumps = orjson.dumps
    for index in range(task.choices):
        opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if reply.tool is not None:
            opening["content"] = None
            call = _tool_call(task, reply, index)
            call["function"]["arguments"] = ""
            opening["tool_calls"] = [{"index": 0, **call}]
        yield event(index, dumps(opening))
    async for token in paced(reply.tokens, task.tokens_per_second):
        if reply.tool is None:
            delta = b'{"content":%b}' % dumps(token)
        else:
            delta = b'{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % dumps(token)
        for index in range(task.choices):
            yield event(index, delta)
    for index in range(task.choices):
        yield event(index, b"{}", dumps(_finish_reason(reply)))
    if with_usage:
        usage = orjson.dumps(_chat_usage(task, reply))
        yield b'data: %b],"usage":%b}\n\n' % (head, usage)
    yield b"data: [DONE]\n\n"


def _head(task: Task, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{task.job_id[:12].hex()}",
        "object": kind,
        "created": task.created_at,
        "model": task.model,
        "service_tier": "default",
        "system_fingerprint": "fp_echo",
    }


def _tool_call(task: Task, reply: Reply, index: int) -> dict[str, Any]:
    return {
        "id": f"call_{task.job_id[:11].hex()}{index:02x}",
        "type": "function",
        "function": {"name": reply.tool, "arguments": reply.text},
    }


def _finish_reason(reply: Reply) -> str:
    if reply.cut:
        return "length"
    return "stop" if reply.tool is None else "tool_calls"


def _chat_usage(task: Task, reply: Reply) -> dict[str, Any]:
    prompt = task.prompt_tokens
    output = len(reply.tokens) * task.choices
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


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
"""The fields of a response that repeat the request, with their defaults."""


def whole_response(task: Task, reply: Reply) -> bytes:
    """Return a whole ``response``."""
    return orjson.dumps(_finished(task, reply))


async def response_events(task: Task, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Yield a stream, one event a token: created, the output item as it grows, and completed or incomplete."""
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        body = orjson.dumps({"type": kind, "sequence_number": number, **fields})
        number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    started = _response(task, "in_progress", [], None)
    yield event("response.created", response=started)
    yield event("response.in_progress", response=started)
    is_call = reply.tool is not None
    item = _item(task, reply)
    place: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    blank: dict[str, Any] = {"arguments": ""} if is_call else {"content": []}
    yield event("response.output_item.added", output_index=0, item={**item, **blank, "status": "in_progress"})
    if not is_call:
        place["content_index"] = 0
        yield event("response.content_part.added", **place, part=_part(""))
    kind = "response.function_call_arguments.delta" if is_call else "response.output_text.delta"
    start = b'event: %b\ndata: {"type":"%b",' % (kind.encode(), kind.encode())
    end = b"," + orjson.dumps(place if is_call else {**place, "logprobs": []})[1:] + b"\n\n"
    async for token in paced(reply.tokens, task.tokens_per_second):
        yield b'%b"sequence_number":%d,"delta":%b%b' % (start, number, orjson.dumps(token), end)
        number += 1
    if is_call:
        yield event("response.function_call_arguments.done", **place, name=reply.tool, arguments=reply.text)
    else:
        yield event("response.output_text.done", **place, text=reply.text, logprobs=[])
        yield event("response.content_part.done", **place, part=_part(reply.text))
    yield event("response.output_item.done", output_index=0, item=item)
    finished = _finished(task, reply)
    yield event(f"response.{finished['status']}", response=finished)


def _finished(task: Task, reply: Reply) -> dict[str, Any]:
    status = "incomplete" if reply.cut else "completed"
    return _response(task, status, [_item(task, reply)], _response_usage(task, reply))


def _response(task: Task, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
    document = task.document
    repeated = {key: default if document.get(key) is None else document[key] for key, default in _ECHOED.items()}
    return {
        "id": f"resp_{task.job_id[:24].hex()}",
        "object": "response",
        "created_at": task.created_at,
        "status": status,
        "completed_at": task.created_at if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": task.model,
        "output": output,
        "service_tier": "default",
        "usage": usage,
        **repeated,
    }


def _item(task: Task, reply: Reply) -> dict[str, Any]:
    status = "incomplete" if reply.cut else "completed"
    if reply.tool is not None:
        return {
            "id": f"fc_{task.job_id[:24].hex()}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{task.job_id[:12].hex()}",
            "name": reply.tool,
            "arguments": reply.text,
        }
    return {
        "id": f"msg_{task.job_id[:24].hex()}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_part(reply.text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_usage(task: Task, reply: Reply) -> dict[str, Any]:
    prompt = task.prompt_tokens
    output = len(reply.tokens)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + output,
    }


_READ_BYTES = 4_096
"""Events that are there at once come together, as in one read of a server: each piece costs messages."""


class EchoBackend:
    """A backend without state or connections. ``tokens_per_second`` is its pace, ``paces`` that of single models; 0 means no pause.

    Where there is no pause, tokens come together, unless ``by_token`` has each come by itself.
    """

    def __init__(
        self, tokens_per_second: float = 0.0, *, paces: Mapping[str, float] | None = None, by_token: bool = False
    ) -> None:
        self._tokens_per_second = tokens_per_second
        self._paces = paces or {}
        self._by_token = by_token

    async def models(self) -> tuple[str, ...]:
        """Return no models: it echoes for any."""
        return ()

    async def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the echo of a request; see ``ports.Compute``."""
        read, pace = bytearray(), self._paces.get(model, self._tokens_per_second)
        task = read_body(task_kind, model, body, job_id=job_id, stream=stream, tokens_per_second=pace)
        async with aclosing(_compute(task)) as chunks:
            async for chunk in chunks:
                read += chunk
                if pace > 0 or self._by_token or len(read) >= _READ_BYTES:
                    yield bytes(read)
                    read.clear()
        if read:
            yield bytes(read)

    async def close(self) -> None:
        """Do nothing: there are no connections."""


def _compute(task: Task) -> AsyncGenerator[bytes, None]:
    """Begin a result at the task's pace; a whole one comes after the time that its tokens take."""
    reply = compose(task)
    is_chat = task.kind == CHAT
    if task.stream:
        return chat_chunks(task, reply) if is_chat else response_events(task, reply)
    body = chat_completion(task, reply) if is_chat else whole_response(task, reply)
    return _whole(body, reply.tokens, task.tokens_per_second)


async def _whole(body: bytes, tokens: tuple[str, ...], tokens_per_second: float) -> AsyncGenerator[bytes, None]:
    if tokens_per_second > 0:
        async for _ in paced(tokens, tokens_per_second):
            pass
    yield body
