"""What the tests of the adapter to nodes buy, and how."""

import json
import traceback

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.upstreams.openai.price import NodePrice

ALL_KINDS = frozenset(TaskKind)
CHAT = TaskKind.CHAT_COMPLETIONS
KEY = "sk-node-key-0123456789"
PRICE = NodePrice(per_request_msat=1_000, per_1k_output_msat=1_000)
SSE = "text/event-stream"


def task(kind=CHAT, *, stream=False, **body):
    subject = {
        CHAT: {"messages": [{"role": "user", "content": "hello you"}]},
        TaskKind.RESPONSES: {"input": "hello you"},
        TaskKind.COMPLETIONS: {"prompt": "hello you"},
        TaskKind.EMBEDDINGS: {"input": "hello you"},
    }[kind]
    asked = {"model": "m", **subject, **({"stream": True} if stream else {}), **body}
    return Task(kind, "m", json.dumps(asked).encode(), stream=stream)


def raw_task(body, *, stream=False):
    return Task(CHAT, "m", body, stream=stream)


async def bought(upstream, asked, timeout_s=60):
    quote = await upstream.request_quote(asked, "node:a", 1)
    return await upstream.execute(quote, asked, timeout_s)


async def streamed(upstream, asked, timeout_s=60):
    quote = await upstream.request_quote(asked, "node:a", 1)
    return [event async for event in upstream.execute_stream(quote, asked, timeout_s)]


async def failed(call):
    """Return the error of a call, after checking that no text contains the key."""
    with pytest.raises(UpstreamError) as caught:
        await call
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(error) + error.message
    assert KEY not in shown
    assert "127.0.0.1" not in error.message
    return error
