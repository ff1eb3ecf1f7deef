"""A virtual node as the operator configured it, and the connections to it."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import aiohttp

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.openai.price import NodePrice

# Below the 5 s after which many servers close an idle connection: a request that meets such a close is lost.
KEEPALIVE_S: Final = 4.0
# Connections beside those of tasks, so that a busy node can still be probed.
_SPARE_CONNECTIONS = 2
# aiohttp writes longer bodies in pieces only from a file.
_LONG_BODY_BYTES = 1024 * 1024
_FREE = NodePrice()
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

NO_ROUTE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
"""The statuses of a node that does not have a route."""

MAX_HEADER_BYTES: Final = 64 * 1024
"""The longest header of a node's answer: proxies before it add long cookies and policies."""
MAX_HEADERS: Final = 1024
"""The most headers of a node's answer."""


@dataclass(frozen=True, slots=True)
class VirtualNode:
    """A virtual node as the operator set it up.

    ``base_url`` ends where ``/chat/completions`` begins. ``models`` is empty where the node's own list is used;
    ``kinds`` are the kinds of task that its endpoints take.
    """

    name: str
    base_url: str
    api_key: str = field(default="", repr=False)
    price: NodePrice = _FREE
    timeout_s: float = 120.0
    models: tuple[str, ...] = ()
    owned_by: str = ""
    kinds: frozenset[TaskKind] = frozenset({TaskKind.CHAT_COMPLETIONS, TaskKind.EMBEDDINGS})
    max_connections: int = 64
    proxy: bool = False
    """Whether the proxy that the environment names may be used."""

    @property
    def provider_id(self) -> str:
        """Its id in the catalog."""
        return NODE_PREFIX + self.name


@dataclass(slots=True)
class SendState:
    """Whether a request had a connection, and may therefore have reached the node.

    ``on_used_connection`` says that the connection had carried an earlier request, which the node may have been closing.
    """

    had_connection: bool = False
    on_used_connection: bool = False


class NodeConnections:
    """The connections to one node, made when they are first needed."""

    def __init__(self, node: VirtualNode) -> None:
        self.node = node
        # Acquired here and not in the connector, where the wait would count as connecting.
        self._slots = asyncio.Semaphore(node.max_connections)
        # By whether each request has a connection of its own.
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._users = 0

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Keep the connections open for a call, also when the node is removed meanwhile."""
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    @asynccontextmanager
    async def slot(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold one of the node's connections for a task.

        Raises:
            UpstreamError: none became free in time.
        """
        async with self.used():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._slots.acquire()
            except TimeoutError:
                raise UpstreamError(
                    UpstreamStatus.RESOURCE_EXHAUSTED,
                    "all connections to the node are in use",
                    retryable=True,
                    evidence=Verdict.NONE,
                ) from None
            try:
                yield
            finally:
                self._slots.release()

    def session(self, *, unpooled: bool = False) -> aiohttp.ClientSession:
        """Return the session, or the one whose every request has a connection of its own.

        It belongs to the loop of the first call.
        """
        if self._closed:
            raise UpstreamError(
                UpstreamStatus.UNAVAILABLE, "the connections to the node are closed", evidence=Verdict.NONE
            )
        session = self._sessions.get(unpooled)
        if session is None:
            session = self._sessions[unpooled] = self._open(force_close=unpooled)
        return session

    async def close_when_idle(self) -> None:
        """Close the connections, for good, when the calls that are under way have ended."""
        await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """Close the connections, for good."""
        self._closed = True
        for session in self._sessions.values():
            await session.close()

    def _open(self, *, force_close: bool) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_record_connection)
        trace.on_connection_reuseconn.append(_record_reused_connection)
        connector = aiohttp.TCPConnector(
            limit=self.node.max_connections + _SPARE_CONNECTIONS,
            force_close=force_close,
            keepalive_timeout=None if force_close else KEEPALIVE_S,
        )
        return open_session(connector, headers=key_header(self.node), proxy=self.node.proxy, traces=[trace])


def key_header(node: VirtualNode) -> dict[str, str]:
    """Return the header that holds a node's key; none without a key."""
    return {"Authorization": f"Bearer {node.api_key}"} if node.api_key else {}


def open_session(
    connector: aiohttp.TCPConnector,
    *,
    proxy: bool,
    headers: Mapping[str, str] = _NO_HEADERS,
    traces: list[aiohttp.TraceConfig] | None = None,
) -> aiohttp.ClientSession:
    """Open a session with nodes, for JSON; ``headers`` go with each request besides the usual ones."""
    return aiohttp.ClientSession(
        headers={
            "Content-Type": "application/json",
            # Compression would only be undone here: results are forwarded as they are.
            "Accept-Encoding": "identity",
            "User-Agent": "lcp-gateway",
            **headers,
        },
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=proxy,
        trace_configs=traces,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
    )


def payload(body: bytes) -> bytes | io.BytesIO:
    """Return a request's body in a form that aiohttp writes in pieces where it is long."""
    return body if len(body) <= _LONG_BODY_BYTES else io.BytesIO(body)


async def _record_connection(_session: object, context: Any, _params: object) -> None:
    context.trace_request_ctx.had_connection = True


async def _record_reused_connection(_session: object, context: Any, _params: object) -> None:
    context.trace_request_ctx.had_connection = True
    context.trace_request_ctx.on_used_connection = True
