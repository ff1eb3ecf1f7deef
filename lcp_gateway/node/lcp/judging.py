"""What a seller makes of a request and its input: which model it is for, how much output it may have, or why it is refused.

The rules are those of lcpd-grpcd, whose JSON reader takes names in any case, the last of two, and U+FFFD for bytes that are no
UTF-8. One is left out: that daemon refuses a task that the requester's own manifest does not list.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.messages import CHAT, IDENTITY, JSON, RESPONSES, Protocol, QuoteRequest, StreamBegin
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.table import read_params
from lcp_gateway.node.lcp.tlv import WireError

_KINDS: Final = frozenset({CHAT, RESPONSES})
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_U32_MAX: Final = 0xFFFF_FFFF


class RequestRefused(Exception):
    """A request that is not served; ``code`` and ``message`` go to the peer. The message never quotes the input."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class SoldModel:
    """A model that is sold, for those kinds of task. A request without a limit of its own is charged for ``max_output_tokens``."""

    price: TokenPrice
    max_output_tokens: int
    kinds: tuple[str, ...] = (CHAT, RESPONSES)

    def charged_tokens(self, kind: str, document: Mapping[str, Any]) -> int:
        """Return the output tokens that a request is charged for; ``document`` are its fields, their names in lower case.

        The limit of a Responses request is not read, as at lcpd-grpcd.

        Raises:
            RequestRefused: it asks for more output than the model has.
        """
        return self.max_output_tokens if kind == RESPONSES else _limit(kind, document, self.max_output_tokens)


@dataclass(frozen=True, slots=True)
class JudgedInput:
    """What an input asks for: the output tokens that it is charged for, and whether the result is streamed."""

    output_tokens: int
    stream: bool


def judge_request(protocol: Protocol, request: QuoteRequest, models: Mapping[str, SoldModel]) -> str:
    """Return the name of the model that a request is for.

    Raises:
        RequestRefused: its version, kind, params or model are not sold.
    """
    if not models:
        raise RequestRefused(ErrorCode.UNSUPPORTED_TASK, "provider disabled")
    if request.protocol_version != protocol.value:
        raise RequestRefused(ErrorCode.UNSUPPORTED_VERSION, f"unsupported protocol_version: {request.protocol_version}")
    kind = request.task_kind
    if kind not in _KINDS:
        word = "task_kind" if protocol is Protocol.V02 else "method"
        raise RequestRefused(ErrorCode.UNSUPPORTED_TASK, f"unsupported {word}: {_quoted(kind)}")
    if request.params is None:
        raise RequestRefused(ErrorCode.UNSUPPORTED_PARAMS, f"{kind} params are required")
    try:
        model, unknown = read_params(request.params)
    except WireError:
        raise RequestRefused(ErrorCode.UNSUPPORTED_PARAMS, f"{kind} params must be a valid TLV stream") from None
    if unknown:
        raise RequestRefused(ErrorCode.UNSUPPORTED_PARAMS, f"{kind} params contain unknown tlv types")
    if model not in models:
        names = ", ".join(sorted(models))
        raise RequestRefused(ErrorCode.UNSUPPORTED_TASK, f"unsupported model: {_quoted(model)} (supported: {names})")
    if kind not in models[model].kinds:
        raise RequestRefused(ErrorCode.UNSUPPORTED_TASK, f"the model {_quoted(model)} is not sold for {kind}")
    return model


def judge_begin(begin: StreamBegin, max_stream_bytes: int) -> None:
    """Check the head of an input.

    Raises:
        RequestRefused: its encoding or type is not taken, it lacks its length or hash, or it is too long.
    """
    if begin.content_encoding != IDENTITY:
        raise RequestRefused(ErrorCode.UNSUPPORTED_ENCODING, "unsupported content_encoding")
    if begin.total_len is None or begin.sha256 is None:
        raise RequestRefused(ErrorCode.INVALID_STATE, "input stream begin missing total_len/sha256")
    if begin.total_len > max_stream_bytes:
        raise RequestRefused(ErrorCode.PAYLOAD_TOO_LARGE, "input stream exceeds local limits")
    if begin.content_type != JSON:
        raise RequestRefused(ErrorCode.UNSUPPORTED_ENCODING, "unsupported content_type")


def judge_input(kind: str, model: str, sold: SoldModel, body: bytes) -> JudgedInput:
    """Read what an input asks for; ``model`` is the one of its request.

    Raises:
        RequestRefused: it is no request of that kind for that model, or asks for more output than the model has.
    """
    document = read_input(kind, model, body)
    return JudgedInput(sold.charged_tokens(kind, document), bool(document.get("stream")))


def read_input(kind: str, model: str, body: bytes) -> dict[str, Any]:
    """Return an input's fields, their names in lower case: what a buyer checks before it asks, and a seller before it quotes.

    Raises:
        RequestRefused: it is no request of that kind for that model.
    """
    document = _read(kind, body)
    if _text(kind, document.get("model")) != model:
        raise _refused("params.model must match request_json.model")
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        _no_json(kind)
    if kind == RESPONSES:
        if document.get("input") is None:
            raise _refused("request_json.input is required")
        return document
    messages = document.get("messages")
    if messages is not None and not isinstance(messages, list):
        _no_json(kind)
    if not messages:
        raise _refused("request_json.messages is required")
    return document


def _read(kind: str, body: bytes) -> dict[str, Any]:
    try:
        document = _DECODER.decode(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        _no_json(kind)
    if not isinstance(document, dict):
        _no_json(kind)
    return document


def _no_constant(_: str) -> NoReturn:
    raise ValueError("no JSON number")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=lambda pairs: {name.lower(): value for name, value in pairs}, parse_constant=_no_constant
)


def _text(kind: str, model: object) -> str:
    if model is not None and not isinstance(model, str):
        _no_json(kind)
    if not model:
        raise _refused("request_json.model is required")
    return model


def _limit(kind: str, document: Mapping[str, Any], most: int) -> int:
    given = {name: document[name] for name in _LIMITS if document.get(name) is not None}
    for number in given.values():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _U32_MAX:
            _no_json(kind)
    for name, number in given.items():
        if number == 0:
            raise _refused(f"invalid task: {name} must be > 0")
        if number > most:
            raise _refused(f"invalid task: {name} exceeds provider max_output_tokens")
        return int(number)
    return most


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refused(message: str) -> RequestRefused:
    return RequestRefused(ErrorCode.UNSUPPORTED_PARAMS, message)


def _no_json(kind: str) -> NoReturn:
    raise _refused(f"{kind} input must be valid json")
