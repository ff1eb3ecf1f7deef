"""Parsing of addresses: host and port, gRPC targets, URLs, hosts, networks, origins, the journal's place."""

import functools
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from lcp_gateway.config.parsers import Form, optional, parse_list, parse_text, read_by, refuse_quotes

MAX_PORT = 65_535
JOURNAL_OFF: Final = "off"
"""The value of ``journal_url`` with which no journal is kept."""

_DATABASE_SCHEMES = frozenset({"sqlite", "postgresql", "postgres"})
_DEFAULT_PATH = "/v1"
_HIDDEN = "***"
_HOST_NAME = re.compile(r"(\*\.)?[^\s:/\\@,*\[\]]+")
# As far as the last "@": a password that holds an unescaped one is hidden as a whole.
_URL_PASSWORD = re.compile(r"(?<=://)([^:@/?#]*):.*@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"(?<=[?&])(\w*password)=[^&]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where a server listens. An empty host means all interfaces, port 0 any free port."""

    host: str
    port: int


_LOOPBACK_NAMES = frozenset({"localhost", "::1"})


def is_loopback(host: str) -> bool:
    """Return whether a host that is listened on, or connected to, is this machine's loopback interface."""
    return host in _LOOPBACK_NAMES or host.startswith("127.")


def parse_host_port(text: str) -> HostPort:
    """Read ``host:port``, ``:port`` (all interfaces, as in Go) or ``[::1]:port``.

    Raises:
        ValueError: the text is none of these.
    """
    host, colon, port_text = text.strip().rpartition(":")
    if not colon:
        raise ValueError('must be "host:port", for example 127.0.0.1:8080')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or "[" in host or "]" in host:
        raise ValueError('an IPv6 address is written in brackets, for example "[::1]:8080"')
    if any(character.isspace() or character in "/@" for character in host):
        raise ValueError('must be "host:port" without a scheme or a path')
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > MAX_PORT:
        raise ValueError(f"the port must be a number from 0 to {MAX_PORT}")
    return HostPort(host, int(port_text))


def _parse_listen(value: object) -> str:
    text = parse_text(value)
    parse_host_port(text)
    return text


def parse_grpc_target(value: object) -> str:
    """Read a target of gRPC: ``host:port``, ``unix:/path``, or a ``dns:///``, ``ipv4:``, ``ipv6:`` address."""
    text = parse_text(value)
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and colon:
        if not rest.removeprefix("//"):
            raise ValueError('a unix address needs a path, for example "unix:/run/lcpd.sock"')
        return text
    if text.startswith("/"):
        raise ValueError('a socket is written "unix:/path"')
    if "://" in text and scheme != "dns":
        raise ValueError('must be "host:port" or "unix:/path", without a scheme such as http://')
    if scheme in {"dns", "ipv4", "ipv6"} and colon and not rest.isdigit():
        rest = rest.removeprefix("///")
    else:
        rest = text
    where = parse_host_port(rest)
    if not where.host or not where.port:
        raise ValueError('must name a host and a port, for example "127.0.0.1:50051"')
    return text


def _parse_grpc_listen(value: object) -> str:
    is_socket = parse_text(value).startswith("unix:")
    return parse_grpc_target(value) if is_socket else _parse_listen(value)


def _parse_origins(value: object) -> tuple[str, ...]:
    origins = parse_list(value)
    for origin in origins:
        if origin in {"*", "null"}:
            continue
        parts = urlsplit(origin)
        is_site = parts.scheme in {"http", "https"}
        if (
            not parts.scheme
            or origin.lower() != f"{parts.scheme}://{parts.netloc}".lower()
            or (is_site and (not parts.netloc or "*" in parts.netloc))
            or ("*" in parts.netloc and parts.netloc != "*")
        ):
            raise ValueError(
                'an origin is "*", or written as "https://chat.example.com", or for programs built on a browser as '
                '"app://obsidian.md" or "vscode-webview://*"'
            )
    return origins


def _parse_backend(value: object) -> str:
    text = parse_text(value)
    if text == "echo":
        return text
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('must be "echo" or a base URL such as "http://127.0.0.1:11434/v1"')
    if parts.username or parts.password:
        raise ValueError("a key belongs in node_backend_api_key, not in the URL")
    return text.rstrip("/")


def without_password(text: str) -> str:
    """Return a database URL without its password; other texts stay as they are."""
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
            raise ValueError("a journal in memory is lost when the process ends: name a file")
        return str(Path(text).expanduser()) if text else ""
    if scheme.partition("+")[0] not in _DATABASE_SCHEMES:
        raise ValueError('must be a path, "sqlite:///path", "postgresql://..." or "off"')
    if not rest.strip("/"):
        raise ValueError("the address names no database")
    return text


def _parse_redis(value: object) -> str:
    text = refuse_quotes(parse_text(value))
    if text.partition("://")[0] not in {"redis", "rediss", "unix"}:
        raise ValueError('must be a URL such as "redis://127.0.0.1:6379/0"')
    return text


def _parse_networks(value: object) -> tuple[str, ...]:
    """Read addresses and networks; an address becomes a network of one."""
    found = []
    for text in parse_list(value):
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise ValueError(f'must be addresses or networks such as "10.0.0.7" or "10.0.0.0/8": {error}') from None
    return tuple(dict.fromkeys(found))


def _parse_http_url(value: object) -> str:
    text = parse_text(value)
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('must be a base URL such as "http://127.0.0.1:4318"')
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a base URL alone; a key belongs in otlp_headers")
    return text.rstrip("/")


def _parse_hosts(value: object) -> tuple[str, ...]:
    """Read host names; they come out in lower case and without the root's dot."""
    found = []
    for text in parse_list(value):
        if text != "*" and not _HOST_NAME.fullmatch(text):
            raise ValueError('must be names such as "gateway" or "*.example.com", without a scheme and a port, or "*"')
        found.append(text.lower().removesuffix("."))
    return tuple(dict.fromkeys(found))


def parse_base_url(value: object, *, key_setting: str = "api_key") -> str:
    """Read the base URL of an OpenAI-compatible API; ``/v1`` is its path where it has none.

    No message repeats the URL, which may hold a key by mistake; ``key_setting`` is where the key belongs.

    Raises:
        ValueError: it is no such URL, or holds a user, a query or a fragment.
    """
    text = parse_text(value)
    problem = ValueError('must be a URL such as "http://127.0.0.1:11434/v1"')
    if not text.isprintable() or " " in text:
        raise problem
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise problem from None
    if parts.scheme not in {"http", "https"} or not has_host:
        raise problem
    if "@" in parts.netloc:
        raise ValueError(f"a key or a password does not belong in the URL: use {key_setting}")
    if "?" in text or "#" in text:
        raise ValueError("must be a URL without a query and without a fragment")
    path = parts.path.rstrip("/") or _DEFAULT_PATH
    return SplitResult(parts.scheme, parts.netloc, path, "", "").geturl()


NODE_CONNECT_PATH: Final = "/api/nodes/connect"
"""The route at which nodes dial in."""

_DIALLED = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


def parse_gateway_url(value: object) -> str:
    """Read the address of a gateway that a node dials; ``/api/nodes/connect`` is its path where it has none.

    Raises:
        ValueError: it is no such address, or holds a user, a query or a fragment; no message repeats it.
    """
    text = parse_text(value)
    problem = ValueError('must be an address such as "wss://gateway.example.com"')
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise problem from None
    if parts.scheme not in _DIALLED or not has_host or not text.isprintable() or " " in text:
        raise problem
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise ValueError("a token does not belong in the address: use join_token or join_token_file")
    path = parts.path.rstrip("/") or NODE_CONNECT_PATH
    return f"{_DIALLED[parts.scheme]}://{parts.netloc}{path}"


Listen = Annotated[str, Form("address", "HOST:PORT"), read_by(_parse_listen)]
OptionalListen = Annotated[str, Form("address", "HOST:PORT"), read_by(optional(_parse_listen))]
GrpcTarget = Annotated[str, Form("gRPC address", "ADDRESS"), read_by(parse_grpc_target)]
OptionalGrpcListen = Annotated[str, Form("gRPC address", "ADDRESS"), read_by(optional(_parse_grpc_listen))]
Origins = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(_parse_origins)]
Backend = Annotated[str, Form('"echo" or a URL', "BACKEND"), read_by(_parse_backend)]
OptionalRedis = Annotated[str, Form("Redis URL", "URL"), read_by(optional(_parse_redis))]
Journal = Annotated[str, Form("path, database URL or off", "PLACE"), read_by(_parse_journal)]
OptionalGrpcTarget = Annotated[str, Form("gRPC address", "ADDRESS"), read_by(optional(parse_grpc_target))]
Hosts = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(_parse_hosts)]
Networks = Annotated[tuple[str, ...], Form("list", "A,B"), read_by(_parse_networks)]
OpenClawUrl = Annotated[
    str, Form("URL", "URL"), read_by(optional(functools.partial(parse_base_url, key_setting="openclaw_api_key")))
]
OptionalBaseUrl = Annotated[
    str, Form("URL", "URL"), read_by(optional(functools.partial(parse_base_url, key_setting="join_backend_api_key")))
]
GatewayUrl = Annotated[str, Form("URL", "URL"), read_by(optional(parse_gateway_url))]
OptionalHttpUrl = Annotated[str, Form("URL", "URL"), read_by(optional(_parse_http_url))]
