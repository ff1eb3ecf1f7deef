"""The transport of gRPC calls that the adapter uses; messages are bytes, so that a transport knows no service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from lcp_gateway.upstream_status import UpstreamStatus

Metadata = Sequence[tuple[str, str]]

MAX_RECEIVE_BYTES = 33 * 1024 * 1024
"""The largest message that is accepted: a whole result, and a little around it."""


class TransportKind(StrEnum):
    """``AUTO`` is ``DIRECT`` for a daemon on this machine without TLS, else ``GRPCIO``."""

    AUTO = "auto"
    GRPCIO = "grpcio"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """TLS to the daemon: PEM files; without ``ca`` the system's roots are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class LcpdAddress:
    """Where a daemon listens: ``host:port`` or ``unix:/path``; metadata goes with every call (a macaroon, say)."""

    target: str
    tls: TlsFiles | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    proxy: bool = False
    """Whether the proxy that the environment names may be used (grpcio only); prompts and macaroons pass it."""
    transport: TransportKind = TransportKind.AUTO


_NO_TRAILERS: Final[Mapping[str, bytes]] = MappingProxyType({})


class RpcError(Exception):
    """A call ended with a status other than OK.

    ``not_processed``: HTTP/2 itself says that no handler saw the call
    (REFUSED_STREAM, a GOAWAY with a lower last stream id). Anything else may have been executed.
    ``trailers`` are the binary ones that came with the status, by their names, which end in "-bin".
    """

    def __init__(
        self,
        status: UpstreamStatus,
        details: str,
        *,
        not_processed: bool = False,
        trailers: Mapping[str, bytes] = _NO_TRAILERS,
    ) -> None:
        super().__init__(f"{status}: {details}")
        self.status = status
        self.details = details
        self.not_processed = not_processed
        self.trailers = trailers


CONNECTION_ENDED = "Connection closed before the call was sent"
"""The text of a call that was for a connection which has ended."""

MessageSink = Callable[[list[bytes]], bool]
"""Takes messages that have just come, all of them; returns False to leave them all to ``read``."""


class ServerStream(Protocol):
    """A call whose messages come one after the other."""

    async def read(self) -> list[bytes]:
        """Return the messages that are there, at least one; an empty list after the last.

        Raises:
            RpcError: the call failed; messages that came before were returned before.
        """
        ...

    def hand_to(self, sink: MessageSink) -> None:
        """Offer messages to ``sink`` the moment they come, while a reader waits in ``read``: no task is woken for them.

        A transport whose messages come one by one through tasks of its own may leave all of them to ``read``.
        """
        ...

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        ...


class Transport(Protocol):
    """Calls to one daemon. It connects on first use, and again by itself after a failure."""

    @property
    def name(self) -> str:
        """The name in settings, logs and metrics."""
        ...

    @property
    def connection(self) -> object | None:
        """What ``connect`` would return at once; None where it has to be asked."""
        ...

    async def connect(self, timeout_s: float) -> object:
        """Return a token of the connection in use, which is another object after each reconnect; connect if there is none.

        Raises:
            RpcError: no connection can be had.
        """
        ...

    async def unary(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata, *, on: object | None = None
    ) -> bytes:
        """Make a call with one answer. It goes out at most once.

        With ``on``, a token of ``connect``, it goes out on that connection or not at all.

        Raises:
            RpcError: it failed; ``not_processed`` where the connection of ``on`` had ended before it went out.
        """
        ...

    def stream(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata, *, on: object | None = None
    ) -> ServerStream:
        """Start a call with many messages. It goes out at most once; ``on`` is as in ``unary``."""
        ...

    async def close(self) -> None:
        """End all calls and the connection."""
        ...
