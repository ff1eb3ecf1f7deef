"""The messages of the node protocol, and their JSON: read within bounds, since the other side is a stranger."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

SUBPROTOCOL: Final = "lcp-node.v1"
"""The WebSocket subprotocol; its version is that of the protocol."""

KINDS: Final = ("chat", "responses", "completions", "embeddings")
"""The kinds of task by their names on the wire."""

MAX_MODELS: Final = 256
MAX_NAME_CHARS: Final = 256
MAX_TEXT_CHARS: Final = 500
MAX_MSAT: Final = 10**13
"""100 BTC: the highest price of one unit."""
MAX_COUNT: Final = 2**53
MAX_CONCURRENT: Final = 10_000
MAX_WORKERS: Final = 256
MAX_REQUEST_BYTES: Final = 256 * 2**20

_NODE_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")
_WORD = re.compile(r"[a-z0-9_.-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{0,256}")
_MAX_CAPABILITIES = 32


class ProtocolError(Exception):
    """The other side broke the protocol; the connection has to end. ``code`` is a word for the goodbye and for metrics."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model's work, in msat; all parts add up."""

    request_msat: int = 0
    input_1k_msat: int = 0
    output_1k_msat: int = 0
    minute_msat: int = 0


@dataclass(frozen=True, slots=True)
class NodeModel:
    """A model that a node serves. 0 and empty for what it does not say; ``created`` is Unix seconds.

    ``max_output_tokens`` is assumed for a request that sets no limit of its own. ``concurrent`` is how many requests to
    the model may run at once; 0 leaves it to the node's own limit.
    """

    id: str
    kinds: tuple[str, ...] = ("chat",)
    price: Price = Price()
    max_output_tokens: int = 4096
    concurrent: int = 0
    context_length: int = 0
    created: int = 0
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of a node. ``instance`` differs between two processes, ``agent`` names the program.

    ``held`` are the workers of the gateway to which this process is connected already.
    """

    name: str
    instance: str
    agent: str
    concurrent: int
    request_bytes: int
    held: tuple[int, ...] = ()
    models: tuple[NodeModel, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A model that the gateway does not offer, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Offered:
    """Which of the node's models the gateway offers to its clients now."""

    offered: tuple[str, ...]
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The gateway's answer to a hello. Either side is dead once nothing came from it for ``3 * heartbeat_s``.

    The gateway has ``workers`` processes, of which this is number ``worker``: a node dials until it is connected to each.
    """

    node_id: str
    heartbeat_s: float
    window_bytes: int
    commission_ppm: int = 0
    worker: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """A request: ``body_bytes`` of body follow in their own frames. The node may send ``credit_bytes`` of its result at first.

    ``timeout_ms`` is how long the gateway waits for the whole result, ``result_bytes`` the longest that it takes.
    """

    kind: str
    model: str
    stream: bool
    body_bytes: int
    credit_bytes: int
    timeout_ms: int
    result_bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a result."""

    content_type: str
    content_encoding: str = "identity"


@dataclass(frozen=True, slots=True)
class End:
    """The end of a result: its length and hash, and the tokens that it took where the node knows them."""

    sha256: bytes
    length: int
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that has no result, or no whole one. ``status`` is an HTTP status; ``retry_after_s`` is 0 where unknown."""

    status: int
    code: str
    message: str
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a request came to: ``outcome`` is a state of a purchase, ``price_msat`` its price, ``earned_msat`` the owner's part."""

    outcome: str
    price_msat: int
    earned_msat: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """No new requests from now on; those under way may end. ``reconnect_after_s`` is below 0 where dialling in again is of no use."""

    reason: str
    message: str = ""
    reconnect_after_s: float = 0.0


def is_node_name(name: str) -> bool:
    """Whether a node may have this name: 1 to 40 letters, digits, ".", "_" or "-"."""
    return _NODE_NAME.fullmatch(name) is not None


def is_model_name(name: str) -> bool:
    """Whether a client can name a model so: printable, without white space at its ends, and no way to choose a model."""
    is_plain = 0 < len(name) <= MAX_NAME_CHARS and name.isprintable() and name == name.strip()
    return is_plain and name != "auto" and not name.startswith("auto:")


# -- writing ------------------------------------------------------------------------------------------


def write(message: Hello | Offered | Welcome | Request | Head | End | Failure | Receipt | Goodbye) -> bytes:
    """Return a message as JSON, the texts of a failure and a goodbye bounded."""
    match message:
        case End():
            usage = None
            if message.input_tokens is not None or message.output_tokens is not None:
                usage = {"input_tokens": message.input_tokens or 0, "output_tokens": message.output_tokens or 0}
            return orjson.dumps({"sha256": message.sha256.hex(), "length": message.length, "usage": usage})
        case Failure():
            message = replace(message, code=message.code[:64], message=message.message[:MAX_TEXT_CHARS])
        case Goodbye():
            message = replace(message, message=message.message[:MAX_TEXT_CHARS])
        case _:
            pass
    return orjson.dumps(message)


def write_models(models: tuple[NodeModel, ...]) -> bytes:
    """Return the whole list of a node's models as JSON."""
    return orjson.dumps({"models": models})


# -- reading ------------------------------------------------------------------------------------------


def read_hello(payload: bytes) -> Hello:
    """Read a hello."""
    fields = _object(payload, "hello")
    name = _text(fields, "name", MAX_NAME_CHARS)
    if not is_node_name(name):
        raise ProtocolError("bad_name", "a node's name is 1 to 40 letters, digits, '.', '_' or '-'")
    return Hello(
        name=name,
        instance=_text(fields, "instance", 64),
        agent=_text(fields, "agent", 100, ""),
        models=_read_models(fields.get("models")),
        concurrent=_number(fields, "concurrent", 1, MAX_CONCURRENT),
        request_bytes=_number(fields, "request_bytes", 1, MAX_REQUEST_BYTES, MAX_REQUEST_BYTES),
        held=_read_held(fields.get("held", [])),
    )


def read_models(payload: bytes) -> tuple[NodeModel, ...]:
    """Read a node's list of models."""
    return _read_models(_object(payload, "models").get("models"))


def read_welcome(payload: bytes) -> Welcome:
    """Read a welcome."""
    fields = _object(payload, "welcome")
    return Welcome(
        node_id=_text(fields, "node_id", MAX_NAME_CHARS),
        heartbeat_s=_seconds(fields, "heartbeat_s", 0.05, 3_600.0),
        window_bytes=_number(fields, "window_bytes", 1, 2**31 - 1),
        commission_ppm=_number(fields, "commission_ppm", 0, 1_000_000, 0),
        worker=_number(fields, "worker", 0, MAX_WORKERS - 1, 0),
        workers=_number(fields, "workers", 1, MAX_WORKERS, 1),
    )


def read_offered(payload: bytes) -> Offered:
    """Read which models the gateway offers."""
    fields = _object(payload, "offered")
    offered, refused = fields.get("offered"), fields.get("refused", [])
    if not isinstance(offered, list) or not isinstance(refused, list) or max(len(offered), len(refused)) > MAX_MODELS:
        raise ProtocolError("bad_message", "the lists of offered models are no lists, or too long")
    return Offered(
        tuple(_bounded(name, MAX_NAME_CHARS) for name in offered),
        tuple(
            Refused(_bounded(one.get("id"), MAX_NAME_CHARS), _bounded(one.get("reason"), MAX_TEXT_CHARS))
            for one in refused
            if isinstance(one, dict)
        ),
    )


def read_request(payload: bytes) -> Request:
    """Read the head of a request."""
    fields = _object(payload, "request")
    kind = _text(fields, "kind", 64)
    if kind not in KINDS:
        raise ProtocolError("bad_message", "a request of an unknown kind")
    stream = fields.get("stream", False)
    return Request(
        kind=kind,
        model=_text(fields, "model", MAX_NAME_CHARS),
        stream=stream is True,
        body_bytes=_number(fields, "body_bytes", 0, MAX_REQUEST_BYTES),
        credit_bytes=_number(fields, "credit_bytes", 1, 2**31 - 1),
        timeout_ms=_number(fields, "timeout_ms", 1, MAX_COUNT),
        result_bytes=_number(fields, "result_bytes", 1, MAX_COUNT),
    )


def read_head(payload: bytes) -> Head:
    """Read the head of a result."""
    fields = _object(payload, "head")
    texts = [
        _text(fields, name, 256, default) for name, default in (("content_type", ""), ("content_encoding", "identity"))
    ]
    if not all(map(_CONTENT_TYPE.fullmatch, texts)):
        raise ProtocolError("bad_message", "the head of a result holds a character that no header can carry")
    return Head(*texts)


def read_end(payload: bytes) -> End:
    """Read the end of a result. Usage that cannot be read counts as none."""
    fields = _object(payload, "end")
    digest = _text(fields, "sha256", 64)
    if not _SHA256.fullmatch(digest):
        raise ProtocolError("bad_message", "the hash of a result is not 64 hexadecimal digits")
    usage = fields.get("usage")
    tokens: list[int | None] = [None, None]
    if isinstance(usage, dict):
        tokens = [_count_or_none(usage.get(name)) for name in ("input_tokens", "output_tokens")]
    return End(bytes.fromhex(digest), _number(fields, "length", 0, MAX_COUNT), *tokens)


def read_failure(payload: bytes) -> Failure:
    """Read a failure; a code that is no word is dropped, and the text is cut."""
    fields = _object(payload, "error")
    code, message = fields.get("code"), fields.get("message")
    return Failure(
        status=_number(fields, "status", 100, 599, 500),
        code=code if isinstance(code, str) and _WORD.fullmatch(code) else "",
        message=_printable(message) if isinstance(message, str) else "",
        retry_after_s=_seconds(fields, "retry_after_s", 0.0, 3_600.0, 0.0),
    )


def read_receipt(payload: bytes) -> Receipt:
    """Read a receipt."""
    fields = _object(payload, "receipt")
    return Receipt(
        _text(fields, "outcome", 64),
        _number(fields, "price_msat", 0, MAX_COUNT, 0),
        _number(fields, "earned_msat", 0, MAX_COUNT, 0),
    )


def read_goodbye(payload: bytes) -> Goodbye:
    """Read a goodbye."""
    fields = _object(payload, "goodbye")
    reason, message = fields.get("reason"), fields.get("message")
    return Goodbye(
        reason=reason if isinstance(reason, str) and _WORD.fullmatch(reason) else "unknown",
        message=_printable(message) if isinstance(message, str) else "",
        reconnect_after_s=_seconds(fields, "reconnect_after_s", -1.0, 86_400.0, 0.0),
    )


def _read_held(value: object) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) <= MAX_WORKERS:
        places = tuple(place for place in value if isinstance(place, int) and 0 <= place < MAX_WORKERS)
        if len(places) == len(value):
            return places
    raise ProtocolError("bad_message", "held is no list of places of workers")


def _read_models(value: object) -> tuple[NodeModel, ...]:
    if not isinstance(value, list):
        raise ProtocolError("bad_message", "the models are no list")
    if len(value) > MAX_MODELS:
        raise ProtocolError("too_many_models", f"more than {MAX_MODELS} models")
    found: dict[str, NodeModel] = {}
    for entry in value:
        model = _read_model(entry)
        if model.id in found:
            raise ProtocolError("bad_message", "a model is listed twice")
        found[model.id] = model
    return tuple(found.values())


def _read_model(entry: object) -> NodeModel:
    if not isinstance(entry, dict):
        raise ProtocolError("bad_message", "a model is no object")
    name = _text(entry, "id", MAX_NAME_CHARS)
    if not is_model_name(name):
        raise ProtocolError("bad_name", "a model has a name that no client can use")
    kinds = entry.get("kinds", ["chat"])
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        raise ProtocolError("bad_message", f"the kinds of a model are one or more of {', '.join(KINDS)}")
    price = entry.get("price", {})
    if not isinstance(price, dict):
        raise ProtocolError("bad_message", "the price of a model is no object")
    words = entry.get("capabilities", [])
    if not isinstance(words, list) or len(words) > _MAX_CAPABILITIES:
        raise ProtocolError("bad_message", "the capabilities of a model are no list, or too many")
    return NodeModel(
        id=name,
        kinds=tuple(dict.fromkeys(kinds)),
        price=Price(
            *(
                _number(price, part, 0, MAX_MSAT, 0)
                for part in ("request_msat", "input_1k_msat", "output_1k_msat", "minute_msat")
            )
        ),
        max_output_tokens=_number(entry, "max_output_tokens", 1, MAX_COUNT, 4096),
        concurrent=_number(entry, "concurrent", 0, MAX_CONCURRENT, 0),
        context_length=_number(entry, "context_length", 0, MAX_COUNT, 0),
        created=_number(entry, "created", 0, MAX_COUNT, 0),
        capabilities=tuple(word for word in words if isinstance(word, str) and _WORD.fullmatch(word)),
    )


def _object(payload: bytes, what: str) -> Mapping[str, Any]:
    try:
        found = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise ProtocolError("bad_message", f"the {what} is not JSON") from None
    if not isinstance(found, dict):
        raise ProtocolError("bad_message", f"the {what} is no object")
    return found


def _text(fields: Mapping[str, Any], name: str, most: int, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise ProtocolError("bad_message", f"{name} is no printable text of at most {most} characters")
    return value


def _number(fields: Mapping[str, Any], name: str, least: int, most: int, default: int | None = None) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError("bad_message", f"{name} is no whole number from {least} to {most}")
    return value


def _seconds(fields: Mapping[str, Any], name: str, least: float, most: float, default: float | None = None) -> float:
    value = fields.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError("bad_message", f"{name} is no number from {least:g} to {most:g}")
    return float(value)


def _count_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else None


def _bounded(value: object, most: int) -> str:
    return _printable(value)[:most] if isinstance(value, str) else ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT_CHARS]).strip()
