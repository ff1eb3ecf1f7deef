"""The local HTTP client by which commands ask a gateway on this machine. Nothing is bought through it."""

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

_TIMEOUT_S = 2.0
_MAX_READYZ_BYTES = 2**20
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
            reasons=tuple(
                printable(str(reason))[:_SHOWN_CHARACTERS] for reason in document["reasons"]
            ),
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
        document = json.loads(response.read(_MAX_READYZ_BYTES))
        server = response.headers.get("Server", "")
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as json says that it cannot be read
    return server, document


_FIND_TIMEOUT_S = 1.0
_ANSWER_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 64 * 2**20
_FAILURES = (OSError, http.client.HTTPException)
_PATHS: Mapping[TaskKind, str] = {
    TaskKind.CHAT_COMPLETIONS: "/v1/chat/completions",
    TaskKind.RESPONSES: "/v1/responses",
    TaskKind.COMPLETIONS: "/v1/completions",
    TaskKind.EMBEDDINGS: "/v1/embeddings",
}
_SET_A_KEY = (
    "give the settings that it has (--config, or LCP_GATEWAY_API_KEYS, or LCP_GATEWAY_AUTH=accounts with "
    "LCP_GATEWAY_ADMIN_KEY), or ask daemon and nodes themselves with --direct"
)
_LOOPBACK = frozenset({"localhost", "::1"})
# An address to listen on that is none to call.
_ADVICE: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "; see lcp-gateway models",
}


@dataclass(frozen=True, slots=True)
class GatewayResponse:
    """An answer over HTTP: its status, who says to have written it, and the JSON object that it is."""

    status: int
    server: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is called, over https where it has a ``certificate``."""

    host: str
    port: int
    certificate: Path | None = None

    @property
    def url(self) -> str:
        """Give the address for people."""
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Give a connection that is not open yet.

        Raises:
            OSError: the certificate cannot be read.
        """
        if self.certificate is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        context = ssl.create_default_context()
        if self.host in _LOOPBACK or self.host.startswith("127."):
            # No certificate is made out to this address, and what is sent to it does not leave the machine.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_verify_locations(self.certificate)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=context)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that answers. ``presented`` says which key it is asked with, ``nodes_up`` of each node by its name whether it is up."""

    address: Address
    key: str = field(repr=False)
    presented: str = "no key"
    nodes_up: Mapping[str, bool] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return self.address.url

    def models(self) -> Sequence[Mapping[str, Any]]:
        """Give its list of models.

        Raises:
            CommandFailed: it did not answer, or refused.
        """
        return _entries(self._ask("GET", "/v1/models"))

    def ranking(self, limit: int, *capabilities: str) -> Sequence[Mapping[str, Any]]:
        """Give its models that can do all this with the score of each at its best provider, the best first.

        Raises:
            CommandFailed: as in ``models``.
        """
        query = {"limit": limit, "capabilities": capabilities}
        return _entries(self._ask("POST", "/api/models/route", json.dumps(query).encode()))

    def explain(self, kind: TaskKind, body: bytes) -> Mapping[str, Any]:
        """Give how it would route a request.

        Raises:
            CommandFailed: as in ``models``; also what is wrong with the request, and that nobody suits.
        """
        # A gateway that cannot rank does not know the header either, and would buy the answer.
        self.ranking(1)
        return self._ask("POST", _PATHS[kind], body, {"X-Lcp-Route-Only": "true"})

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        sent = dict(headers or {})
        if self.key:
            sent["Authorization"] = f"Bearer {self.key}"
        try:
            asked = call(self.address, method, path, body, sent, _ANSWER_TIMEOUT_S)
        except _FAILURES:
            raise CommandFailed(f"the gateway at {self.url} does not answer") from None
        if asked.status != HTTPStatus.OK:
            error = asked.document.get("error")
            words = refusal(asked.status, error if isinstance(error, Mapping) else {})
            if asked.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                words += f"; presented was {self.presented}: {_SET_A_KEY}"
            raise CommandFailed(f"the gateway at {self.url}: {words}")
        return asked.document


def refusal(status: int, error: Mapping[str, Any]) -> str:
    """Put an error of the gateway, as its answers have it, into a line."""
    message = str(error.get("message") or "it cannot say")
    code = " ".join(str(part) for part in (status, error.get("code")) if part)
    return f"{printable(message)} ({printable(code)}){_ADVICE.get(status, '')}"


def find_gateway(settings: Settings) -> RunningGateway | None:
    """Find the gateway that listens where the settings say; None where there is none."""
    address = address_of(settings)
    if not address.port:
        return None
    try:
        # This needs no key: none goes to something else that listens there.
        asked = call(address, "GET", "/readyz", None, {}, _FIND_TIMEOUT_S)
    except _FAILURES:
        return None
    if not asked.server.startswith(_SERVER) or "jobs_in_flight" not in asked.document:
        return None
    nodes = asked.document.get("nodes") or {}
    key, presented = _key_of(settings)
    return RunningGateway(
        address,
        key,
        presented,
        {name: bool(state["up"]) for name, state in nodes.items()},
    )


def _key_of(settings: Settings) -> tuple[str, str]:
    """Give the key to ask with, and say which one it is."""
    if settings.api_keys:
        return settings.api_keys[0], "the first of api_keys"
    if settings.admin_key:
        return settings.admin_key, "admin_key"
    return "", "no key"


def address_of(settings: Settings) -> Address:
    """Give where a gateway with these settings is called from this machine; the port is 0 where nobody knows it."""
    where = parse_host_port(settings.http_addr)
    return Address(_CALLED_AS.get(where.host, where.host), where.port, settings.http_tls_cert)


def call(
    address: Address,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout_s: float,
) -> GatewayResponse:
    """Ask a gateway, or whatever listens there.

    Raises:
        OSError, http.client.HTTPException: there was no answer.
    """
    connection = address.connect(timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        text = response.read(_MAX_ANSWER_BYTES)
        server = response.headers.get("Server", "")
    finally:
        connection.close()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    return GatewayResponse(response.status, server, document if isinstance(document, dict) else {})


def _entries(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = document.get("data")
    return found if isinstance(found, list) else []
