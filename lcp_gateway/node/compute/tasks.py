"""A task as the echo reads it: the request, parsed, and what decides the length of its reply."""

import json
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES
from lcp_gateway.node.ports import ComputeError
from lcp_gateway.values import value

MAX_OUTPUT_TOKENS: Final = 1 << 31
MAX_CHOICES: Final = 128


_INPUT_KEY = {CHAT: "messages", RESPONSES: "input"}
_LIMIT_KEYS = {CHAT: ("max_completion_tokens", "max_tokens"), RESPONSES: ("max_output_tokens",)}


@value(kw_only=True)
class Task:
    """One request to compute. ``document`` is the parsed ``body``; ``max_tokens`` is per choice, None when it names no limit.

    ``created_at`` is Unix seconds; ``tokens_per_second`` 0 means no pause.
    """

    job_id: bytes
    kind: str
    model: str
    body: bytes
    document: dict[str, Any]
    stream: bool
    max_tokens: int | None
    choices: int
    created_at: int
    tokens_per_second: float

    @property
    def prompt_tokens(self) -> int:
        """The size of the prompt as it is priced and counted: a token for every four bytes begun."""
        return -(-len(self.body) // BYTES_PER_TOKEN)


def read_body(kind: str, model: str, body: bytes, *, job_id: bytes, stream: bool, tokens_per_second: float) -> Task:
    """Read a request for a model, to be computed now. The error quotes nothing of it.

    Raises:
        ComputeError: it is no request for that model, or a limit of it is out of bounds.
    """
    document = _parse(body)
    if not isinstance(document, dict):
        raise _refused("request_json must be an object")
    if not isinstance(document.get("model"), str) or not document["model"]:
        raise _refused("request_json.model is required")
    if document["model"] != model:
        raise _refused("request_json.model does not match params.model")
    if not document.get(_INPUT_KEY[kind]):
        raise _refused(f"request_json.{_INPUT_KEY[kind]} is required")
    return Task(
        job_id=job_id,
        kind=kind,
        model=model,
        body=body,
        document=document,
        stream=stream,
        max_tokens=read_limit(kind, document),
        choices=read_choices(document) if kind == CHAT else 1,
        created_at=int(time.time()),
        tokens_per_second=tokens_per_second,
    )


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        # Go's reader takes the escape of half a surrogate pair and puts U+FFFD in its place.
        text = json.dumps(json.loads(body), ensure_ascii=False)
        return orjson.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        # The decoder's own text may quote the body.
        raise _refused("request_json is not valid JSON") from None


def read_limit(kind: str, document: Mapping[str, Any]) -> int | None:
    """Return the tokens that each choice of a request may have; None where it names no limit.

    Raises:
        ComputeError: they are too many.
    """
    for key in _LIMIT_KEYS[kind]:
        limit = document.get(key)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            if limit > MAX_OUTPUT_TOKENS:
                raise _refused(f"{key} is too large")
            return limit
    return None


def read_choices(document: Mapping[str, Any]) -> int:
    """Return how many choices a chat request asks for.

    Raises:
        ComputeError: they are too many.
    """
    choices = document.get("n")
    if not isinstance(choices, int) or choices < 1:
        return 1
    if choices > MAX_CHOICES:
        raise _refused("n is too large")
    return choices


def _refused(message: str) -> ComputeError:
    return ComputeError(ErrorCode.UNSUPPORTED_PARAMS, message)
