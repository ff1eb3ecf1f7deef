"""Parsing of values from text or TOML: durations, sizes, numbers, keys, lists, maps."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

from lcp_gateway.constants import NODE_PREFIX, PPM

WORKERS_AUTO: Final = "auto"
MAX_WORKERS: Final = 64

_QUOTES: Final = "\"'`"
_BRACKETS: Final = ("[]", "{}")


def refuse_quotes(text: str) -> str:
    """Return the text unchanged. Docker's env files keep quotes and brackets as part of a value.

    Raises:
        ValueError: it begins or ends with a quote, or stands in brackets as JSON does. The message does not repeat it.
    """
    if text and (text[0] in _QUOTES or text[-1] in _QUOTES):
        raise ValueError("begins or ends with a quote, which would be part of it: leave it out")
    if any(text.startswith(begin) and text.endswith(end) for begin, end in _BRACKETS):
        raise ValueError("is written in brackets, which would be part of it: leave them out")
    return text


def refuse_json_list(value: object) -> None:
    """Refuse a list that is written as JSON, or in quotes as a whole; no message repeats it."""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("[") or text.endswith("]"):
        raise ValueError(
            'looks like a JSON array: write the items with commas between them, without "[", "]" and quotes'
        )
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES and text.count(text[0]) == 2:  # noqa: PLR2004 - a pair
        raise ValueError("is written in quotes, which would be part of it: leave them out")


_DURATION_UNITS_S: Mapping[str, float] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # noqa: RUF001 - the micro sign, which Go accepts beside the Greek mu
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")  # noqa: RUF001 - as above
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?b|b)?", re.IGNORECASE)
_SIZE_UNITS: Mapping[str, int] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
# The words of Go's ParseBool, which openai-serve used, and the usual others.
_TRUE_WORDS = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE_WORDS = frozenset({"0", "f", "false", "n", "no", "off"})
_PEER_ID = re.compile(r"[0-9a-f]{66}")
_NODE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_BEARER_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Form:
    """The name of a type in the docs and in ``--help``; ``row`` is the dataclass of its tables, where it has any."""

    name: str
    metavar: str
    row: type | None = None


def parse_duration_s(value: object) -> float:
    """Read seconds from a number, from digits, or from Go's form (``5s``, ``1m30s``, ``500ms``)."""
    problem = ValueError('must be a duration: seconds, or a form such as "5s", "500ms" or "1m30s"')
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem
    if isinstance(value, str):
        text = value.strip()
        try:
            seconds = float(text)
        except ValueError:
            parts = _DURATION_PART.findall(text)
            if not parts or "".join(number + unit for number, unit in parts) != text:
                raise problem from None
            seconds = sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    else:
        seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("must be a finite duration that is not negative")
    return seconds


def parse_size_bytes(value: object) -> int:
    """Read a number of bytes from an integer or from a form such as ``1MiB``, ``64KiB`` or ``10MB``."""
    problem = ValueError('must be a size: whole bytes, or a form such as "64KiB" or "1MiB"')
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise problem
    if isinstance(value, int):
        size = float(value)
    else:
        matched = _SIZE.fullmatch(value.strip().replace("_", ""))
        if matched is None:
            raise problem
        size = float(matched[1]) * _SIZE_UNITS[(matched[2] or "").lower()]
    if size < 0 or not size.is_integer() or size > 2**53:
        raise problem
    return int(size)


def parse_count(value: object) -> int:
    """Read a whole number that is not negative."""
    problem = ValueError("must be a whole number, 0 or more")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise problem
    try:
        count = int(value)
    except ValueError:
        raise problem from None
    if not 0 <= count < 2**63:
        raise problem
    return count


def _parse_workers(value: object) -> str | int:
    """Read a number of workers, at least 1, or ``auto``."""
    if isinstance(value, str) and value.strip().lower() == WORKERS_AUTO:
        return WORKERS_AUTO
    try:
        count = parse_count(value)
    except ValueError:
        count = 0
    if not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"must be `{WORKERS_AUTO}` or a number from 1 to {MAX_WORKERS}")
    return count


def parse_number(value: object) -> float:
    """Read a number that is not negative."""
    problem = ValueError("must be a number, 0 or more")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem
    try:
        number = float(value)
    except ValueError:
        raise problem from None
    if not math.isfinite(number) or number < 0:
        raise problem
    return number


def parse_text(value: object) -> str:
    """Read a text without the blanks around it."""
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - pydantic collects ValueErrors
    return value.strip()


def _parse_switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in _TRUE_WORDS:
        return True
    if word in _FALSE_WORDS:
        return False
    raise ValueError("must be true or false")


def _parse_node_name(value: object) -> str:
    text = parse_text(value)
    if not _NODE_NAME.fullmatch(text):
        raise ValueError('a node\'s name is 1 to 64 letters, digits, ".", "_" or "-"')
    return text


def parse_bearer_key(value: object) -> str:
    """Read a key that is sent as a bearer token; it may be empty. No message repeats it."""
    text = refuse_quotes(parse_text(value))
    if text and not _BEARER_KEY.fullmatch(text):
        raise ValueError("holds a character that no header can carry")
    return text


def _parse_provider(value: object) -> str:
    text = parse_text(value)
    if text.startswith(NODE_PREFIX):
        return NODE_PREFIX + _parse_node_name(text.removeprefix(NODE_PREFIX))
    try:
        return _parse_peer_id(text)
    except ValueError as error:
        raise ValueError(f'{error}; a node of the configuration is written "{NODE_PREFIX}NAME"') from None


def _parse_peer_id(text: str) -> str:
    if not _PEER_ID.fullmatch(text.lower()):
        raise ValueError("a peer id is 66 hexadecimal digits (the node's public key)")
    return text.lower()


def parse_list(value: object) -> tuple[str, ...]:
    """Read a text with commas, or an array of texts; blanks and repeats are dropped."""
    if isinstance(value, str):
        items: Iterable[object] = value.split(",")
    elif isinstance(value, list | tuple):
        items = value
    else:
        raise ValueError("must be a comma-separated list or an array of texts")  # noqa: TRY004 - as above
    texts = [parse_text(item) for item in items]
    return tuple(dict.fromkeys(text for text in texts if text))


def _parse_bearer_keys(value: object) -> tuple[str, ...]:
    refuse_json_list(value)
    keys = parse_list(value)
    for number, key in enumerate(keys, start=1):
        try:
            refuse_quotes(key)
        except ValueError as error:
            raise ValueError(f"key number {number} {error}") from None
        if not _BEARER_KEY.fullmatch(key):
            # The key itself stays out of the message.
            raise ValueError(f"key number {number} holds a character that no header can carry")
    return keys


def _pairs(value: object, *, last_equals: bool) -> list[tuple[str, str]]:
    """Read a table, or ``key=value;key=value``; with ``last_equals`` a key may hold the sign itself."""
    if isinstance(value, Mapping):
        return [(parse_text(key), parse_text(item)) for key, item in value.items()]
    if not isinstance(value, str):
        raise ValueError('must be a table or "key=value;key=value"')  # noqa: TRY004 - as above
    found = []
    for number, part in enumerate(filter(str.strip, value.split(";")), start=1):
        key, equals, item = part.rpartition("=") if last_equals else part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f'entry number {number} is not "key=value"')
        found.append((key.strip(), item.strip()))
    return found


def _unique(found_pairs: list[tuple[str, str]]) -> dict[str, str]:
    if len(found := dict(found_pairs)) != len(found_pairs):
        raise ValueError("a key occurs twice")
    return found


def _parse_model_map(value: object) -> dict[str, str]:
    found = _unique(_pairs(value, last_equals=True))
    if not all(found):
        raise ValueError("a model has no name")
    providers = {}
    for model, provider in found.items():
        try:
            providers[model] = _parse_provider(provider)
        except ValueError as error:
            raise ValueError(f"the provider of model {model!r:.80}: {error}") from None
    return providers


def _parse_peer_models(value: object) -> dict[str, tuple[str, ...]]:
    pairs: list[tuple[str, object]] = (
        [(parse_text(key), item) for key, item in value.items()]
        if isinstance(value, Mapping)
        else [(key, item) for key, item in _pairs(value, last_equals=False)]
    )
    found: dict[str, tuple[str, ...]] = {}
    for number, (key, item) in enumerate(pairs, start=1):
        try:
            peer_id = key if key == "*" else _parse_peer_id(key)
            models = parse_list(item)
        except ValueError as error:
            raise ValueError(f"entry number {number}: {error}") from None
        if peer_id in found:
            raise ValueError(f"entry number {number}: the peer occurs twice")
        found[peer_id] = models
    return found


def _parse_metadata(value: object) -> dict[str, str]:
    """Read metadata, whose values are often secrets: no message repeats one."""
    if isinstance(value, str):
        refuse_quotes(value.strip())
    found = _unique([(key.lower(), item) for key, item in _pairs(value, last_equals=False)])
    for number, (key, item) in enumerate(found.items(), start=1):
        if not _METADATA_KEY.fullmatch(key) or key.startswith("grpc-") or key.endswith("-bin"):
            raise ValueError(f"key number {number} is no name for plain gRPC metadata")
        if not _HEADER_VALUE.fullmatch(item):
            raise ValueError(f"value number {number} holds a character that no header can carry")
        try:
            refuse_quotes(item)
        except ValueError as error:
            raise ValueError(f"value number {number} {error}") from None
    return found


def parse_file(value: object) -> Path | None:
    """Read a path, which may begin with a tilde; an empty text is no path."""
    if isinstance(value, Path):
        return value
    text = parse_text(value) if value is not None else ""
    return Path(text).expanduser() if text else None


def _parse_level(value: object) -> str:
    text = parse_text(value).lower()
    return "warn" if text == "warning" else text


def _lower(value: object) -> str:
    return parse_text(value).lower()


def optional(parse: Callable[[object], str]) -> Callable[[object], str]:
    """Return a parser that also accepts an empty text."""
    return lambda value: parse(value) if parse_text(value) else ""


def read_by(parse: Callable[[object], object]) -> BeforeValidator:
    """Return the validator that reads a type by a function, which raises ``ValueError`` for bad values."""
    return BeforeValidator(parse)


# Invoices of both testnets begin alike.
INVOICE_PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {"mainnet": "bc", "testnet": "tb", "testnet4": "tb", "signet": "tbs", "regtest": "bcrt", "simnet": "sb"}
)
"""The prefix of a network's invoices (BOLT 11) by the name of the network."""


def _parse_network(value: object) -> str:
    text = parse_text(value).lower()
    if not text or text in INVOICE_PREFIXES.values():
        return text
    if prefix := INVOICE_PREFIXES.get(text):
        return prefix
    raise ValueError(f"must be one of {', '.join(INVOICE_PREFIXES)}")


def _parse_model_limits(value: object) -> dict[str, int]:
    if isinstance(value, Mapping):
        found: dict[str, object] = {parse_text(key): item for key, item in value.items()}
    else:
        found = dict(_unique(_pairs(value, last_equals=True)))
    if not all(found):
        raise ValueError("a model has no name")
    limits = {}
    for model, amount in found.items():
        try:
            limits[model] = parse_count(amount)
        except ValueError as error:
            raise ValueError(f"the limit of model {model!r:.80} {error}") from None
    return limits


def _parse_ppm(value: object) -> int:
    if (ppm := parse_count(value)) > PPM:
        raise ValueError(f"must be at most {PPM}, which is 100%")
    return ppm


def _parse_ratio(value: object) -> float:
    if (ratio := parse_number(value)) > 1:
        raise ValueError("must be from 0 to 1")
    return ratio


Text = Annotated[str, Form("text", "TEXT"), read_by(parse_text)]
Duration = Annotated[float, Form("duration", "DURATION"), read_by(parse_duration_s)]
Size = Annotated[int, Form("size", "BYTES"), read_by(parse_size_bytes)]
Count = Annotated[int, Form("whole number", "N"), read_by(parse_count)]
Number = Annotated[float, Form("number", "N"), read_by(parse_number)]
Switch = Annotated[bool, Form("true or false", ""), read_by(_parse_switch)]
NodeName = Annotated[str, Form("node's name", "NAME"), read_by(_parse_node_name)]
BearerKey = Annotated[str, Form("text", "TEXT"), read_by(parse_bearer_key)]
OptionalProvider = Annotated[str, Form("provider", "PROVIDER"), read_by(optional(_parse_provider))]
Names = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(parse_list)]
BearerKeys = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(_parse_bearer_keys)]
ModelMap = Annotated[Mapping[str, str], Form("map", "MODEL=PROVIDER;..."), read_by(_parse_model_map)]
PeerModels = Annotated[Mapping[str, tuple[str, ...]], Form("map", "PEER=MODEL,MODEL;..."), read_by(_parse_peer_models)]
Metadata = Annotated[Mapping[str, str], Form("map", "KEY=VALUE;..."), read_by(_parse_metadata)]
OptionalFile = Annotated[Path | None, Form("file", "FILE"), read_by(parse_file)]
Auth = Annotated[Literal["", "none", "keys", "accounts"], Form("none, keys or accounts", "MODE"), read_by(_lower)]
LogLevel = Annotated[
    Literal["debug", "info", "warn", "error"], Form("debug, info, warn or error", "LEVEL"), read_by(_parse_level)
]
LogFormat = Annotated[Literal["auto", "console", "json"], Form("auto, console or json", "FORMAT"), read_by(_lower)]
Choice = Annotated[Literal["score", "order"], Form("score or order", "CHOICE"), read_by(_lower)]
Workers = Annotated[Literal["auto"] | int, Form("auto or whole number", "N"), read_by(_parse_workers)]
Transport = Annotated[Literal["auto", "direct", "grpcio"], Form("auto, direct or grpcio", "TRANSPORT"), read_by(_lower)]
ConsoleMode = Annotated[Literal["auto", "on", "off"], Form("auto, on or off", "MODE"), read_by(_lower)]
Registration = Annotated[Literal["closed", "invite", "open"], Form("closed, invite or open", "MODE"), read_by(_lower)]
Network = Annotated[str, Form("network", "NETWORK"), read_by(_parse_network)]
ModelLimits = Annotated[Mapping[str, int], Form("map", "MODEL=MSAT;..."), read_by(_parse_model_limits)]
PartsPerMillion = Annotated[int, Form("parts per million", "PPM"), read_by(_parse_ppm)]
OptionalFolder = Annotated[Path | None, Form("folder", "FOLDER"), read_by(parse_file)]
Ratio = Annotated[float, Form("number from 0 to 1", "N"), read_by(_parse_ratio)]
