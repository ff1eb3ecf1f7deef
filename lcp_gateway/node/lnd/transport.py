"""The transport at an lnd: custom messages, and the peers that are connected.

The macaroon needs the calls that ``lightning.lnd.permissions.NODE_LISTENING`` lists, and ``NODE_CONNECTING`` for ``connect``.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

import grpc.aio

from lcp_gateway.lightning.lnd.channel import LndAddress, lnd_errors
from lcp_gateway.lightning.lnd.client import LndClient
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.node.ports import LightningAway, MessageReceived, PeerConnected, PeerDisconnected, TransportEvent
from lcp_gateway.upstream_status import UpstreamStatus

KEEPALIVE_S: Final = 10.0
"""How often the node checks its connections to lnd: one that is dead without an error is found within twice that."""

_SEND_TIMEOUT_S: Final = 15.0
"""lnd writes a message to the peer before it answers, and drops a peer that takes none for longer than this."""

_CONNECT_TIMEOUT_S: Final = 30
"""How long lnd may take to connect with a peer, over Tor too."""

_ANSWER_S: Final = 5.0
"""How much longer its answer may take."""

_MAX_WAITING: Final = 64
"""Events read ahead: 4 MiB of the largest messages. More wait at lnd."""

# A number of lnrpc.PeerEvent.EventType; the other one is PEER_OFFLINE.
_ONLINE: Final = 0


class LndTransport(LndClient):
    """The ``Transport`` of a node over lnd. Made and used in one event loop.

    Raises:
        LndNotInstalled: the extra is missing.
        OSError: the certificate or the macaroon cannot be read.
    """

    def __init__(self, address: LndAddress, *, timeout_s: float = 10.0, keepalive_s: float = KEEPALIVE_S) -> None:
        super().__init__(address, timeout_s=timeout_s, keepalive_s=keepalive_s)

    async def identity(self) -> tuple[str, str]:
        """Return lnd's id, and the prefix of its network's invoices."""
        with away():
            info = await self.info()
        if info.invoice_prefix is None:
            raise LightningAway(f"lnd is on the network {info.network!r}, the prefix of whose invoices is not known")
        return info.identity, info.invoice_prefix

    async def events(self) -> AsyncGenerator[TransportEvent, None]:
        """Return peers and messages as they come."""
        messages = self._stubs.lightning
        with away():
            # Calls go out in their order on a connection that stands already, and on no other.
            await self.info()
        inbox: asyncio.Queue[Any] = asyncio.Queue(_MAX_WAITING)
        streams = [
            self._lightning.SubscribeCustomMessages(messages.SubscribeCustomMessagesRequest(), metadata=self._metadata),
            self._lightning.SubscribePeerEvents(messages.PeerEventSubscription(), metadata=self._metadata),
        ]
        readers = [asyncio.create_task(read_all(stream, inbox)) for stream in streams]
        try:
            with away():
                # lnd says nothing when a subscription has begun; both have once a later call is answered.
                await self.info()
                addresses = await self._addresses()
            for peer_id, address in addresses.items():
                yield PeerConnected(peer_id, address)
            while True:
                batch = [await inbox.get()]
                while not inbox.empty():
                    batch.append(inbox.get_nowait())
                if any(isinstance(it, messages.PeerEvent) and it.type == _ONLINE for it in batch):
                    with away():
                        addresses = await self._addresses()
                for item in batch:
                    if isinstance(item, LndError):
                        raise LightningAway(str(item)) from item
                    yield self._event(item, addresses)
        finally:
            await stop_all(readers)

    async def send(self, peer_id: str, message_type: int, payload: bytes) -> None:
        """Send a message. lnd keeps the order of calls that are made one after the other."""
        request = self._stubs.lightning.SendCustomMessageRequest(
            peer=bytes.fromhex(peer_id), type=message_type, data=payload
        )
        with away():
            async with lnd_errors():
                await self._lightning.SendCustomMessage(request, timeout=_SEND_TIMEOUT_S, metadata=self._metadata)

    async def connect(self, peer_id: str, address: str) -> None:
        """Connect with a peer, once: lnd's own attempts that go on would hide why there is no connection."""
        request = self._stubs.lightning.ConnectPeerRequest(
            addr=self._stubs.lightning.LightningAddress(pubkey=peer_id, host=address), timeout=_CONNECT_TIMEOUT_S
        )
        try:
            async with lnd_errors():
                await self._lightning.ConnectPeer(
                    request, timeout=_CONNECT_TIMEOUT_S + _ANSWER_S, metadata=self._metadata
                )
        except LndError as error:
            if "already connected" not in error.message:
                raise LightningAway(str(error)) from error

    async def disconnect(self, peer_id: str) -> None:
        """End the connection with a peer, unless lnd has channels with it.

        lnd would not connect with it again by itself, and its channels could not be used.
        """
        messages = self._stubs.lightning
        with away():
            channels = await self._ask(
                self._lightning.ListChannels, messages.ListChannelsRequest(peer=bytes.fromhex(peer_id))
            )
            if channels.channels:
                raise LightningAway("lnd has channels with the peer: it stays connected")
            await self._ask(self._lightning.DisconnectPeer, messages.DisconnectPeerRequest(pub_key=peer_id))

    async def _addresses(self) -> dict[str, str]:
        answer = await self._ask(self._lightning.ListPeers, self._stubs.lightning.ListPeersRequest())
        return {peer.pub_key: peer.address for peer in answer.peers}

    def _event(self, item: Any, addresses: dict[str, str]) -> TransportEvent:
        if isinstance(item, self._stubs.lightning.CustomMessage):
            return MessageReceived(item.peer.hex(), item.type, item.data)
        if item.type == _ONLINE:
            return PeerConnected(item.pub_key, addresses.get(item.pub_key, ""))
        return PeerDisconnected(item.pub_key)


async def read_all(stream: Any, inbox: "asyncio.Queue[Any]") -> None:
    """Put a stream's messages into a queue, and at last the ``LndError`` with which it ended; a clean end is one too."""
    try:
        try:
            async with lnd_errors():
                while (message := await stream.read()) is not grpc.aio.EOF:
                    await inbox.put(message)
        finally:
            stream.cancel()
    except LndError as error:
        await inbox.put(error)
        return
    await inbox.put(ended())


def ended() -> LndError:
    """Return the error of a subscription that lnd ended in good order, as it does when it is stopped."""
    return LndError(UpstreamStatus.CANCELLED, "lnd ended the subscription", retryable=True)


async def stop_all(tasks: "list[asyncio.Task[None]]") -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def away() -> Iterator[None]:
    """Raise the node's own error in place of lnd's."""
    try:
        yield
    except LndError as error:
        raise LightningAway(str(error)) from error
