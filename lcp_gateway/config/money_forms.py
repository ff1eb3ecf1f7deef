"""The written forms of what concerns money: the journal's address, networks, limits of models."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from lcp_gateway.config.forms import (
    Form,
    pairs,
    parse_count,
    parse_grpc_target,
    parse_text,
    read_by,
    unique,
)
from lcp_gateway.config.quotes import refuse_quotes

JOURNAL_OFF: Final = "off"
"""How it is said that no journal is kept."""

# Invoices of both testnets begin alike.
INVOICE_PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mainnet": "bc",
        "testnet": "tb",
        "testnet4": "tb",
        "signet": "tbs",
        "regtest": "bcrt",
        "simnet": "sb",
    }
)
"""The prefix of a network's invoices (BOLT 11) by the name of the network."""

_DATABASE_SCHEMES = frozenset({"sqlite", "postgresql", "postgres"})
_PPM = 1_000_000
# As far as the last "@": a password that holds one unescaped is not left half shown.
_URL_PASSWORD = re.compile(r"(?<=://)([^:@/?#]*):.*@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"(?<=[?&])(\w*password)=[^&]*", re.IGNORECASE)
_HIDDEN = "***"


def without_password(text: str) -> str:
    """Give a database URL as it may be shown; other texts stay as they are."""
    if "://" not in text:
        return text
    hidden = _URL_PASSWORD.sub(rf"\1:{_HIDDEN}@", text)
    return _QUERY_PASSWORD.sub(rf"\1={_HIDDEN}", hidden)


def _parse_journal(value: object) -> str:
    text = str(value) if isinstance(value, Path) else refuse_quotes(parse_text(value))
    if text.lower() == JOURNAL_OFF:
        return JOURNAL_OFF
    scheme, mark, rest = text.partition("://")
    if not mark:
        if text == ":memory:":
            raise ValueError("a journal in memory forgets what it is for: give a file")
        return str(Path(text).expanduser()) if text else ""
    if scheme.partition("+")[0] not in _DATABASE_SCHEMES:
        raise ValueError('must be a path, "sqlite:///path", "postgresql://..." or "off"')
    if not rest.strip("/"):
        raise ValueError("the address names no database")
    return text


def _parse_network(value: object) -> str:
    text = parse_text(value).lower()
    if not text or text in INVOICE_PREFIXES.values():
        return text
    if prefix := INVOICE_PREFIXES.get(text):
        return prefix
    raise ValueError(f"must be one of {', '.join(INVOICE_PREFIXES)}")


def _parse_model_limits(value: object) -> dict[str, int]:
    """A model's name may hold "=", an amount never does."""
    if isinstance(value, Mapping):
        found: dict[str, object] = {parse_text(key): item for key, item in value.items()}
    else:
        found = dict(unique(pairs(value, last_equals=True)))
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
    if (ppm := parse_count(value)) > _PPM:
        raise ValueError(f"must be at most {_PPM}, which is the whole")
    return ppm


def _parse_optional_grpc_target(value: object) -> str:
    return parse_grpc_target(value) if parse_text(value) else ""


def _parse_optional_redis(value: object) -> str:
    text = refuse_quotes(parse_text(value))
    if text and text.partition("://")[0] not in {"redis", "rediss", "unix"}:
        raise ValueError('must be a URL such as "redis://127.0.0.1:6379/0"')
    return text


OptionalRedis = Annotated[str, Form("Redis URL", "URL"), read_by(_parse_optional_redis)]
Journal = Annotated[str, Form("path, database URL or off", "PLACE"), read_by(_parse_journal)]
Network = Annotated[str, Form("network", "NETWORK"), read_by(_parse_network)]
ModelLimits = Annotated[
    Mapping[str, int], Form("map", "MODEL=MSAT;..."), read_by(_parse_model_limits)
]
PartsPerMillion = Annotated[int, Form("parts per million", "PPM"), read_by(_parse_ppm)]
OptionalGrpcTarget = Annotated[
    str, Form("gRPC address", "ADDRESS"), read_by(_parse_optional_grpc_target)
]
