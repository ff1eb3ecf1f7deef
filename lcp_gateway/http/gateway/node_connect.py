"""GET /api/nodes/connect: the WebSocket of a node that dials in."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import WSMsgType, web

from lcp_gateway.accounts.keys import KeysStale
from lcp_gateway.http.errors import ApiError
from lcp_gateway.node_protocol.frames import MAX_FRAME_BYTES
from lcp_gateway.node_protocol.messages import SUBPROTOCOL

NODE_CONNECT: Final = "/api/nodes/connect"

# How long the closing handshake may take.
_CLOSE_S = 2.0


class WebSocketOfNode:
    """A WebSocket that carries frames: binary messages alone."""

    def __init__(self, socket: web.WebSocketResponse, transport: Any) -> None:
        self._socket = socket
        self._transport = transport

    async def receive(self) -> bytes | None:
        """Wait for the next frame; None once the connection has ended, or a message came that is no frame."""
        message = await self._socket.receive()
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        return None

    def post(self, frame: bytes) -> None:
        """Send a small frame without waiting."""
        sending = self._socket.send_bytes(frame)
        # It writes at its first step, and may then wait for a reader that is slow, which a small frame need not.
        with contextlib.suppress(StopIteration, ConnectionError, RuntimeError):
            sending.send(None)
        sending.close()

    async def send(self, frame: bytes) -> None:
        """Send a frame, and wait while the other side reads too slowly."""
        try:
            await self._socket.send_bytes(frame)
        except RuntimeError as error:
            raise ConnectionResetError("the WebSocket is closed") from error

    @property
    def is_behind(self) -> bool:
        """Whether bytes wait to be sent."""
        return bool(self._transport is not None and self._transport.get_write_buffer_size())

    async def close(self) -> None:
        """Close the connection in order."""
        if not self.is_behind:
            await self._socket.close()
        self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True, slots=True)
class NodeConnectRoutes:
    """Takes the WebSockets of nodes.

    ``find`` looks the token up: its grant, or None. ``serve`` serves a node with its grant until it leaves. ``has_place`` says
    whether a further node may come with a grant.
    """

    find: Callable[[str], object | None]
    serve: Callable[[WebSocketOfNode, Any], Awaitable[None]]
    has_place: Callable[[Any], bool]

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/nodes/connect."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            grant = self.find(token.strip()) if scheme.lower() == "bearer" else None
        except KeysStale as stale:
            raise ApiError(
                503,
                f"this token cannot be checked right now: {stale}",
                code="keys_unavailable",
                retry=True,
                reason="keys",
            ) from stale
        if grant is None:
            raise ApiError(
                401,
                "a node's token is needed: Authorization: Bearer <token>",
                code="invalid_node_token",
                reason="auth",
                headers={"WWW-Authenticate": "Bearer"},
            )
        socket = web.WebSocketResponse(
            # A message has to be shorter than this.
            max_msg_size=MAX_FRAME_BYTES + 1,
            protocols=(SUBPROTOCOL,),
            compress=False,
            timeout=_CLOSE_S,
        )
        offered = {name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")}
        if SUBPROTOCOL not in offered or not socket.can_prepare(request):
            raise ApiError(
                400, f"this route takes WebSockets of the subprotocol {SUBPROTOCOL}", code="websocket_expected"
            )
        if not self.has_place(grant):
            raise ApiError(
                503, "the gateway takes no further node now: dial again later", code="too_many_nodes", retry=True
            )
        await socket.prepare(request)
        await self.serve(WebSocketOfNode(socket, request.transport), grant)
        return socket
