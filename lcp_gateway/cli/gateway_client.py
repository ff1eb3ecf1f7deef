"""The HTTP client by which commands ask a gateway on this machine: for its readiness and its measurements. It buys nothing."""

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lcp_gateway.cli.output import CommandFailed, printable
from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.purchase.order import TaskKind

_READY_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 5.0
_MAX_READYZ_BYTES = 2**20
_MAX_ANSWER_BYTES = 64 * 2**20
_SHOWN_CHARACTERS = 300
_SERVER = "lcp-gateway"
_LOOPBACK = frozenset({"localhost", "::1"})
# An address to listen on that cannot be called.
_CALLED_AS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here
_PATHS: Mapping[TaskKind, str] = {
    TaskKind.CHAT_COMPLETIONS: "/v1/chat/completions",
    TaskKind.RESPONSES: "/v1/responses",
    TaskKind.COMPLETIONS: "/v1/completions",
    TaskKind.EMBEDDINGS: "/v1/embeddings",
}
_SET_A_KEY = (
    "pass the settings that it uses (--config, or LCP_GATEWAY_API_KEYS, or LCP_GATEWAY_AUTH=accounts with "
    "LCP_GATEWAY_ADMIN_KEY), or ask daemon and nodes themselves with --direct"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is called. A ``certificate`` is checked where the call may leave this machine."""

    host: str
    port: int
    is_tls: bool = False
    certificate: Path | None = None

    @classmethod
    def of_settings(cls, settings: Settings) -> "Address":
        """Return where a gateway with these settings is called from this machine; port 0 where it is not known."""
        where = parse_host_port(settings.http_addr)
        certificate = settings.http_tls_cert
        host = _CALLED_AS.get(where.host, where.host)
        return cls(host, where.port, certificate is not None, certificate)

    @classmethod
    def of_url(cls, url: str) -> "Address":
        """Read an address that was written by ``url``."""
        where = urlsplit(url)
        return cls(where.hostname or "", where.port or 0, where.scheme == "https")

    @property
    def url(self) -> str:
        """The address for people and for files."""
        scheme = "https" if self.is_tls else "http"
        return f"{scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class GatewayResponse:
    """A response: its status, its Server header, and its JSON object, empty where there is none."""

    status: int
    server: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Readiness:
    """The readiness that a gateway reports: ``reasons`` why it is not ready, ``nodes`` by name whether each is up.

    ``workers`` are how many serve, and of how many; None for a gateway of one process.
    """

    ready: bool
    reasons: tuple[str, ...]
    peers: int
    jobs_in_flight: int
    nodes: Mapping[str, bool]
    workers: tuple[int, int] | None = None


def call(
    address: Address,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = _ANSWER_TIMEOUT_S,
    max_bytes: int = _MAX_ANSWER_BYTES,
) -> GatewayResponse:
    """Send a request to a gateway, or to another server that listens there.

    Raises:
        OSError, http.client.HTTPException, ValueError: there was no response.
    """
    connection = _connection(address, timeout_s)
    try:
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        text = response.read(max_bytes)
        server = response.headers.get("Server", "")
    finally:
        connection.close()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    return GatewayResponse(response.status, server, document if isinstance(document, dict) else {})


def ask_readiness(where: Address | str) -> Readiness | None:
    """Ask the gateway at an address or URL whether it is ready; None where none answers, or another program does.

    No key is sent.
    """
    try:
        address = Address.of_url(where) if isinstance(where, str) else where
        response = call(address, "GET", "/readyz", timeout_s=_READY_TIMEOUT_S, max_bytes=_MAX_READYZ_BYTES)
        document = response.document
        if not response.server.startswith(_SERVER) or "jobs_in_flight" not in document:
            return None
        nodes = document.get("nodes") or {}
        workers = document.get("workers")
        return Readiness(
            ready=document["status"] == "ready",
            reasons=tuple(printable(str(reason))[:_SHOWN_CHARACTERS] for reason in document["reasons"]),
            peers=int(document["peers"]),
            jobs_in_flight=int(document["jobs_in_flight"]),
            nodes={str(name): bool(state["up"]) for name, state in nodes.items()},
            workers=(int(workers["running"]), int(workers["of"])) if workers else None,
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that answers. ``key_name`` names the key that is sent, ``nodes_up`` by name whether each node is up."""

    address: Address
    key: str = field(repr=False)
    key_name: str = "no key"
    nodes_up: Mapping[str, bool] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its address, for people."""
        return self.address.url

    def models(self) -> Sequence[Mapping[str, Any]]:
        """Return its list of models."""
        return _entries(self._ask("GET", "/v1/models"))

    def ranking(self, limit: int, *capabilities: str) -> Sequence[Mapping[str, Any]]:
        """Return its models with all these capabilities and the score of each at its best provider, the best first."""
        query = {"limit": limit, "capabilities": capabilities}
        return _entries(self._ask("POST", "/api/models/route", json.dumps(query).encode()))

    def explain(self, kind: TaskKind, body: bytes) -> Mapping[str, Any]:
        """Return how it would route a request."""
        # A gateway without the ranking route does not know the header either, and would buy the answer.
        self.ranking(1)
        return self._ask("POST", _PATHS[kind], body, {"X-Lcp-Route-Only": "true"})

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            response = call(self.address, method, path, body=body, headers={**(headers or {}), **key})
        except (OSError, http.client.HTTPException):
            raise CommandFailed(f"the gateway at {self.url} does not answer") from None
        if response.status != HTTPStatus.OK:
            error = response.document.get("error")
            words = refusal(response.status, error if isinstance(error, Mapping) else {})
            if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                words += f"; this command sent {self.key_name}: {_SET_A_KEY}"
            raise CommandFailed(f"the gateway at {self.url}: {words}")
        return response.document


def refusal(status: int, error: Mapping[str, Any]) -> str:
    """Put an error of the gateway, as its responses have it, into a line."""
    message = str(error.get("message") or "no reason was given")
    code = " ".join(str(part) for part in (status, error.get("code")) if part)
    advice = "; see lcp-gateway models" if status == HTTPStatus.NOT_FOUND else ""
    return f"{printable(message)} ({printable(code)}){advice}"


def find_gateway(settings: Settings) -> RunningGateway | None:
    """Return the gateway that listens where the settings say; None where there is none."""
    address = Address.of_settings(settings)
    # Asked without the key, which must not go to another program that listens there.
    readiness = ask_readiness(address) if address.port else None
    if readiness is None:
        return None
    key, key_name = "", "no key"
    if settings.api_keys:
        key, key_name = settings.api_keys[0], "the first of api_keys"
    elif settings.admin_key:
        key, key_name = settings.admin_key, "admin_key"
    return RunningGateway(address, key, key_name, readiness.nodes)


def _connection(address: Address, timeout_s: float) -> http.client.HTTPConnection:
    if not address.is_tls:
        return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    context = ssl.create_default_context()
    is_local = address.host in _LOOPBACK or address.host.startswith("127.")
    if is_local or address.certificate is None:
        # No certificate is made out to a loopback address, and nothing sent to it leaves the machine. Without a
        # certificate to compare with, only /readyz is asked, without a key.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(address.certificate)
    return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=context)


def _entries(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = document.get("data")
    return found if isinstance(found, list) else []
