"""Whether a gateway on this machine is ready, as it says itself on /readyz."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lcp_gateway.cli.output import plain
from lcp_gateway.config import Settings, parse_host_port

_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 2**20
_SERVER = "lcp-gateway"
_SHOWN_CHARACTERS = 300
# An address to listen on that is none to call.
_CALLED_AS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a gateway says of itself. ``reasons`` tell why it is not ready; ``nodes`` whether each node is up."""

    ready: bool
    reasons: tuple[str, ...]
    peers: int
    jobs_in_flight: int
    nodes: Mapping[str, bool]


def url_of(settings: Settings) -> str:
    """Give where a gateway with these settings is reached from this machine."""
    where = parse_host_port(settings.http_addr)
    host = _CALLED_AS.get(where.host, where.host)
    scheme = "http" if settings.http_tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{where.port}"


def ask_readiness(url: str) -> Readiness | None:
    """Ask the gateway at an address of this machine; ``None`` where none answers, or something else does."""
    try:
        server, document = _get(url)
        if not server.startswith(_SERVER) or "jobs_in_flight" not in document:
            return None
        nodes = document.get("nodes") or {}
        return Readiness(
            ready=document["status"] == "ready",
            reasons=tuple(plain(str(reason))[:_SHOWN_CHARACTERS] for reason in document["reasons"]),
            peers=int(document["peers"]),
            jobs_in_flight=int(document["jobs_in_flight"]),
            nodes={str(name): bool(state["up"]) for name, state in nodes.items()},
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return None


def _get(url: str) -> tuple[str, dict[str, Any]]:
    """Ask for /readyz, and give who says to have answered, and the answer."""
    where = urlsplit(url)
    host, port = where.hostname or "", where.port or 0
    if where.scheme == "https":
        # It is called by an address that its certificate need not name. No key is sent, and nothing of what it says is
        # more than shown.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        document = json.loads(response.read(_MAX_ANSWER_BYTES))
        server = response.headers.get("Server", "")
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as json says that it cannot be read
    return server, document
