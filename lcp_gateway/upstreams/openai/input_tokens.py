"""Asks a virtual node how many tokens a request has: OpenAI's own ``POST /responses/input_tokens``, which costs nothing."""

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

import aiohttp
import orjson

from lcp_gateway.upstreams.openai.connections import (
    KEEPALIVE_S,
    NO_ROUTE,
    VirtualNode,
    key_header,
    open_session,
    payload,
)
from lcp_gateway.upstreams.openai.errors import FAILURES, MAX_ERROR_BYTES, http_error
from lcp_gateway.upstreams.openai.result import read_at_most

_PATH = "/responses/input_tokens"
_OBJECT = "response.input_tokens"
_REMEMBERED_S = 600.0
_MAX_ANSWER_BYTES = 64 * 1024
_MOST_TOKENS = 2**53
# Apart from those of tasks, which must not wait for a count.
_CONNECTIONS = 16
_CONNECTIONS_PER_NODE = 4
_CONNECT_TIMEOUT_S = 2.0


class TokenCounter:
    """Asks nodes to count, over connections of its own. A node that cannot count is not asked again for ten minutes.

    A node's failure is never raised: the caller has an estimate to fall back on.
    """

    def __init__(self, nodes: Iterable[VirtualNode] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes: dict[str, VirtualNode] = {}
        self._clock = clock
        self._cannot: dict[tuple[str, str], float] = {}
        # By whether the environment's proxy may be used.
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._closed = False
        self.use(nodes)

    def use(self, nodes: Iterable[VirtualNode]) -> None:
        """Ask these nodes from now on, also those that could not count before."""
        self._nodes = {node.provider_id: node for node in nodes}
        self._cannot.clear()

    async def count_at(self, provider_id: str, body: bytes, timeout_s: float) -> int | None:
        """Ask the node of this provider id; see ``count``."""
        node = self._nodes.get(provider_id)
        return None if node is None else await self.count(node, body, timeout_s)

    async def count(self, node: VirtualNode, body: bytes, timeout_s: float) -> int | None:
        """Return the tokens of a request for a response, in at most ``timeout_s``; None without an answer."""
        if self._closed or self._is_known_not_to(node):
            return None
        try:
            async with self._open_session(proxy=node.proxy).post(
                node.base_url + _PATH,
                data=payload(body),
                headers=key_header(node),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, connect=_CONNECT_TIMEOUT_S),
            ) as response:
                if response.status in NO_ROUTE:
                    text = await read_at_most(response, MAX_ERROR_BYTES)
                    self._record_refusal(node, response.status, text)
                    return None
                if response.status != HTTPStatus.OK:
                    # The rest of it may be long; the connection is closed with it.
                    response.close()
                    return None
                answer = await read_at_most(response, _MAX_ANSWER_BYTES)
        except FAILURES:
            return None
        return _read(answer)

    async def close(self) -> None:
        """Close all connections, for good."""
        self._closed = True
        for session in self._sessions.values():
            await session.close()

    def _is_known_not_to(self, node: VirtualNode) -> bool:
        until = self._cannot.get((node.name, node.base_url))
        return until is not None and self._clock() < until

    def _record_refusal(self, node: VirtualNode, status: int, text: bytes) -> None:
        if status == HTTPStatus.NOT_FOUND and http_error(status, text).code is not None:
            # It has the route: another thing that the request names is missing.
            return
        self._cannot[node.name, node.base_url] = self._clock() + _REMEMBERED_S

    def _open_session(self, *, proxy: bool) -> aiohttp.ClientSession:
        """Return the session; it belongs to the loop of the first call."""
        if proxy not in self._sessions:
            connector = aiohttp.TCPConnector(
                limit=_CONNECTIONS, limit_per_host=_CONNECTIONS_PER_NODE, keepalive_timeout=KEEPALIVE_S
            )
            self._sessions[proxy] = open_session(connector, proxy=proxy)
        return self._sessions[proxy]


def _read(answer: bytes) -> int | None:
    """Return the count of an answer; None for any other document."""
    try:
        document = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or document.get("object", _OBJECT) != _OBJECT:
        return None
    tokens = document.get("input_tokens")
    if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < _MOST_TOKENS:
        return tokens
    return None
