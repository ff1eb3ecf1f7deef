"""The shapes of Chat Completions: one object, or a stream of chunks that ends with ``[DONE]``."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson

from lcp_gateway.node.compute.base import Work
from lcp_gateway.node.compute.echo.reply import Reply
from lcp_gateway.node.compute.echo.tokens import paced


def completion(work: Work, reply: Reply) -> bytes:
    """Give a whole ``chat.completion``."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if reply.tool is None:
        message["content"] = reply.text
        message["annotations"] = []
    choices = []
    for index in range(work.task.choices):
        said = message
        if reply.tool is not None:
            said = {**message, "tool_calls": [_tool_call(work, reply, index)]}
        choices.append(
            {
                "index": index,
                "message": said,
                "logprobs": None,
                "finish_reason": _finish_reason(reply),
            }
        )
    return orjson.dumps(
        {
            **_head(work, "chat.completion"),
            "choices": choices,
            "usage": _usage(work, reply),
        }
    )


async def chunks(work: Work, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Give a stream, one event a token: the role, the tokens of each choice, its finish, usage if asked for."""
    head = orjson.dumps(_head(work, "chat.completion.chunk"))[:-1] + b',"choices":['
    options = work.task.document.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    tail = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def event(index: int, delta: bytes, finish: bytes = b"null") -> bytes:
        return (
            b'data: %b{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}%b'
            % (head, index, delta, finish, tail)
        )  # fmt: skip

    dumps = orjson.dumps
    for index in range(work.task.choices):
        opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if reply.tool is not None:
            opening["content"] = None
            call = _tool_call(work, reply, index)
            call["function"]["arguments"] = ""
            opening["tool_calls"] = [{"index": 0, **call}]
        yield event(index, dumps(opening))
    async for token in paced(reply.tokens, work.tokens_per_second):
        if reply.tool is None:
            delta = b'{"content":%b}' % dumps(token)
        else:
            delta = b'{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % dumps(token)
        for index in range(work.task.choices):
            yield event(index, delta)
    for index in range(work.task.choices):
        yield event(index, b"{}", dumps(_finish_reason(reply)))
    if with_usage:
        usage = orjson.dumps(_usage(work, reply))
        yield b'data: %b],"usage":%b}\n\n' % (head, usage)
    yield b"data: [DONE]\n\n"


def _head(work: Work, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{work.job_id[:12].hex()}",
        "object": kind,
        "created": work.created_at,
        "model": work.task.model,
        "service_tier": "default",
        "system_fingerprint": "fp_echo",
    }


def _tool_call(work: Work, reply: Reply, index: int) -> dict[str, Any]:
    return {
        "id": f"call_{work.job_id[:11].hex()}{index:02x}",
        "type": "function",
        "function": {"name": reply.tool, "arguments": reply.text},
    }


def _finish_reason(reply: Reply) -> str:
    if reply.cut:
        return "length"
    return "stop" if reply.tool is None else "tool_calls"


def _usage(work: Work, reply: Reply) -> dict[str, Any]:
    prompt = work.task.prompt_tokens
    output = len(reply.tokens) * work.task.choices
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
