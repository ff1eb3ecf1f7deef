"""Probes: a request with a known answer, before a model is offered and now and then."""

from dataclasses import dataclass

import orjson

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.upstreams.dialin.connection import NodeConnection

_MAX_ANSWER_BYTES = 1024 * 1024
_EMBEDDED = "lcp-gateway"


@dataclass(frozen=True, slots=True)
class ProbeRules:
    """How nodes are probed. A model passes whose answer to ``prompt`` holds ``answer``, whatever the case.

    ``interval_s`` is the time between two probes of a node; 0 probes once, before its models are offered.
    """

    is_on: bool = False
    prompt: str = "Reply with one word only: what is the capital of France?"
    answer: str = "Paris"
    interval_s: float = 3_600.0
    timeout_s: float = 60.0
    max_tokens: int = 256


async def probe(node: NodeConnection, model: str, rules: ProbeRules) -> str:
    """Probe one model; return why it failed, empty where it passed. An embedding passes if it is one of numbers."""
    kinds = node.models[model].kinds
    kind = next((one for one in ("chat", "completions", "responses", "embeddings") if one in kinds), "")
    body = orjson.dumps({"model": model, **_body(kind, rules)})
    try:
        # A node that works to capacity is not one that fails: its time begins when it has room.
        await node.wait_for_room(model, None)
        async with node.request(kind, model, body, stream=False, timeout_s=rules.timeout_s) as request:
            await request.wait_head()
            answer = bytearray()
            while chunk := await request.chunk():
                answer += chunk
                if len(answer) > _MAX_ANSWER_BYTES:
                    return "the answer to the probe is too long"
    except UpstreamError as error:
        return f"the probe failed: {error.message}"
    return _problem(kind, bytes(answer), rules.answer)


def _body(kind: str, rules: ProbeRules) -> dict[str, object]:
    match kind:
        case "chat":
            messages = [{"role": "user", "content": rules.prompt}]
            return {"messages": messages, "max_tokens": rules.max_tokens, "temperature": 0}
        case "completions":
            return {"prompt": rules.prompt, "max_tokens": rules.max_tokens, "temperature": 0}
        case "responses":
            return {"input": rules.prompt, "max_output_tokens": rules.max_tokens}
    return {"input": _EMBEDDED}


def _problem(kind: str, answer: bytes, wanted: str) -> str:
    try:
        document = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return "the answer to the probe is not JSON"
    if kind == "embeddings":
        return "" if _is_vector(document) else "the answer to the probe is no embedding"
    # Where the text stands differs between the kinds; a request is not repeated in any of them.
    return "" if wanted.casefold() in _texts(document).casefold() else "the answer to the probe is not the known one"


def _is_vector(document: object) -> bool:
    data = document.get("data") if isinstance(document, dict) else None
    first = data[0] if isinstance(data, list) and data else None
    vector = first.get("embedding") if isinstance(first, dict) else None
    return isinstance(vector, str) or (
        isinstance(vector, list) and bool(vector) and all(isinstance(number, int | float) for number in vector)
    )


def _texts(document: object) -> str:
    """Return the texts of an answer: those under ``content`` and ``text``."""
    found: list[str] = []
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            for name, value in item.items():
                if isinstance(value, str):
                    if name in {"content", "text"}:
                        found.append(value)
                else:
                    waiting.append(value)
    return " ".join(found)
