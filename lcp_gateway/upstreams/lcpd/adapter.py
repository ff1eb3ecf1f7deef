"""The adapter to ``lcpd-grpcd``: its calls, in the version of the protocol that the daemon at the other end speaks."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeVar

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.lightning.lnd.records import PaymentRecord
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.ports import Result, StreamBegin, StreamEvent
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, Tracing
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.routing.peer_models import PeerModels
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.dialect import Dialect, ListedPeer, UnsupportedVersion, read
from lcp_gateway.upstreams.lcpd.grpc_status import is_transient, upstream_error
from lcp_gateway.upstreams.lcpd.payment_report import (
    GET_PAYMENT,
    Software,
    limits_metadata,
    payment_request,
    read_payment,
    read_software,
    report_of_failure,
)
from lcp_gateway.upstreams.lcpd.stream_events import Chunks, read_events, too_long
from lcp_gateway.upstreams.lcpd.transport import (
    MAX_RECEIVE_BYTES,
    LcpdAddress,
    Metadata,
    RpcError,
    Transport,
    TransportKind,
)
from lcp_gateway.upstreams.lcpd.v02 import Version2
from lcp_gateway.upstreams.lcpd.v03 import Version3

DIALECTS: Final[Mapping[int, Dialect]] = MappingProxyType({one.version: one for one in (Version2(), Version3())})
"""The versions of the protocol that daemons may speak."""

_MAX_REASON_CHARS = 256
_MAX_RESULT_BYTES = 32 * 1024 * 1024
"""The largest result in one piece, whatever its peer's manifest allows: it is held in memory."""
_NO_LIMIT = 2**63
_PEERS_AT_ONCE = 4
_MAX_MODELS = 512
# Of all peers together, in equal parts, but for a few that each may have.
_MAX_MODELS_IN_ALL = 8_192
_FEW_MODELS = 64
_PEER_ID = re.compile(r"0[23][0-9a-f]{64}")
# The text of gRPC's own library for a message that came and was not accepted.
_TOO_LARGE = re.compile(rf"\bReceived message larger than max \(\d+ vs\. {MAX_RECEIVE_BYTES}\)")
_SERVICE = "/lcpd.v1.LCPDService/"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LocalInfo:
    """The daemon's identity: its node's public key (66 hex digits), its protocol version, and the program where it says."""

    node_id: str
    protocol_version: int
    software: Software = field(default_factory=Software)


@dataclass(frozen=True, slots=True)
class _Daemon:
    """The daemon at the other end of one connection. After a reconnect it may be another one."""

    connection: object
    info: LocalInfo
    dialect: Dialect


class LcpdUpstream:
    """Buys from LCP peers through a daemon. Implements the ``Upstream`` of purchases; every error is an ``UpstreamError``.

    Listing and quoting are retried where that is safe and useful; the calls that may pay never are.
    """

    def __init__(
        self,
        address: LcpdAddress,
        *,
        on_error: Callable[[str, str], None] = lambda _method, _status: None,
        on_odd_peer: Callable[[str, str], None] = lambda _peer_id, _problem: None,
        on_daemon: Callable[[LocalInfo], None] = lambda _info: None,
        models: PeerModels | None = None,
        tracing: Tracing = NO_TRACING,
        transport: Transport | None = None,
        fee_limit_msat: int = 0,
    ) -> None:
        """``on_error`` gets the names of the method and the status of every call that fails.

        ``on_odd_peer`` gets, once, a peer that is listed in part or not at all, and the reason. ``on_daemon`` gets the
        daemon's identity once it is known, and after each change of its version or its program. ``models`` completes peers that list none. ``transport`` leads to a daemon in this
        process, None to the address. A daemon that is a node of lcp-gateway pays no routing fee above ``fee_limit_msat``; 0
        leaves the limit to it.
        """
        self._transport = open_transport(address) if transport is None else transport
        self._fee_limit_msat = fee_limit_msat
        self._metadata = address.metadata
        self._own_names = frozenset(name.lower() for name, _ in address.metadata)
        self._on_error = on_error
        self._on_odd_peer = on_odd_peer
        self._on_daemon = on_daemon
        self._models = PeerModels() if models is None else models
        self._daemon: _Daemon | None = None
        self._odd_peers: frozenset[tuple[str, str]] = frozenset()
        self._result_limits: Mapping[str, int] = {}
        self._tracing = tracing

    @property
    def transport(self) -> str:
        """The name of the transport in use: ``direct``, ``grpcio``, or ``in-process``."""
        return self._transport.name

    async def local_info(self, timeout_s: float) -> LocalInfo:
        """Return the daemon's identity.

        Raises:
            UnsupportedVersion: it speaks another version of the protocol.
            UpstreamError: it did not answer.
        """
        return (await self._retried(self._ask_daemon, timeout_s)).info

    async def list_peers(self, timeout_s: float) -> tuple[Provider, ...]:
        """Return the peers that are connected and ready, in the daemon's order."""

        async def ask(left_s: float) -> Sequence[ListedPeer]:
            daemon = await self._daemon_now(left_s)
            connection, dialect = daemon.connection, daemon.dialect
            return dialect.peers(await self._send("ListLCPPeers", b"", left_s, connection, dialect.version))

        listed = await self._retried(ask, timeout_s)
        odd: set[tuple[str, str]] = set()
        providers = []
        most = min(_MAX_MODELS, max(_FEW_MODELS, _MAX_MODELS_IN_ALL // max(1, len(listed))))
        for number, peer in enumerate(listed, start=1):
            if number % _PEERS_AT_ONCE == 0:
                # Each may have hundreds of models: requests run in between.
                await asyncio.sleep(0)
            if not _PEER_ID.fullmatch(peer.peer_id):
                odd.add(("", "its id is no public key (66 hexadecimal digits): it is left out"))
                continue
            provider, problems = peer.provider(most)
            providers.append(self._models.complete(provider))
            odd.update((peer.peer_id, problem) for problem in problems)
        for peer_id, problem in odd - self._odd_peers:
            self._on_odd_peer(peer_id, problem)
        self._odd_peers = frozenset(odd)
        self._result_limits = {
            provider.peer_id: min(limits)
            for provider in providers
            if (limits := [n for n in (provider.max_stream_bytes, provider.max_job_bytes) if n])
        }
        return tuple(providers)

    async def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Quote:
        """Ask a peer for its price.

        Raises:
            UpstreamError: no quote came, or a malformed one.
        """

        async def ask(left_s: float) -> Quote:
            daemon = self._known() or await self._daemon_now(left_s)
            dialect = daemon.dialect
            request = dialect.quote_request(task, peer_id)
            try:
                answer = await self._send("RequestQuote", request, left_s, daemon.connection, dialect.version)
            except UpstreamError as error:
                if models := dialect.models_in(error.message):
                    self._models.named(peer_id, models)
                raise
            return dialect.quote(answer, peer_id)

        return await self._retried(ask, timeout_s)

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:  # noqa: ARG002 - the daemon has kept the task since it was quoted
        """Pay and wait for the whole result. Goes out once."""
        daemon, left_s = await self._daemon_of(quote, timeout_s)
        request = pb.AcceptAndExecuteRequest(peer_id=quote.peer_id, job_id=quote.job_id, pay_invoice=True)
        try:
            answer = await self._send(
                "AcceptAndExecute",
                request.SerializeToString(),
                left_s,
                daemon.connection,
                daemon.dialect.version,
                self._limits(quote),
            )
        except UpstreamError as error:
            if _TOO_LARGE.search(error.message):
                # The daemon answers with a result only once it is paid.
                raise too_long(_MAX_RESULT_BYTES) from error
            raise
        result = daemon.dialect.result(answer)
        limit = min(_MAX_RESULT_BYTES, self._result_limits.get(quote.peer_id, _NO_LIMIT))
        if len(result.body) > limit:
            raise too_long(limit)
        return result

    async def execute_stream(
        self,
        quote: Quote,
        task: Task,  # noqa: ARG002 - as above
        timeout_s: float,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Pay and yield the result as it comes. Goes out once."""
        daemon, left_s = await self._daemon_of(quote, timeout_s)
        request = pb.AcceptAndExecuteStreamRequest(peer_id=quote.peer_id, job_id=quote.job_id, pay_invoice=True)
        call = self._transport.stream(
            _SERVICE + "AcceptAndExecuteStream",
            request.SerializeToString(),
            left_s,
            (*self._present_metadata(), *self._limits(quote)),
            on=daemon.connection,
        )
        begun = False
        chunks = Chunks(self._result_limits.get(quote.peer_id, _NO_LIMIT))
        call.hand_to(chunks.take)
        try:
            # More is read when what came has been taken: HTTP/2 flow control stops the daemon for us.
            while messages := await call.read():
                # What ends the call before it is evidence of the payment; after it the text is for the client.
                begun = True
                for event in read_events(messages, daemon.dialect.last_event):
                    if isinstance(event, bytes):
                        chunks.count(event)
                        yield event
                    else:
                        yield replace(event, hand_to=chunks.hand_to) if isinstance(event, StreamBegin) else event
        except RpcError as error:
            raise self._failure("AcceptAndExecuteStream", error, daemon.dialect.version, for_client=begun) from error
        finally:
            call.cancel()

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Tell the peer that the job's result is no longer wanted."""
        request = pb.CancelJobRequest(peer_id=quote.peer_id, job_id=quote.job_id, reason=reason[:_MAX_REASON_CHARS])
        daemon = await self._daemon_now(timeout_s)
        await self._send("CancelJob", request.SerializeToString(), timeout_s, daemon.connection, daemon.dialect.version)

    async def payment(self, job_id: bytes, payment_hash: bytes, timeout_s: float) -> PaymentRecord | None:
        """Return a purchase's payment as the node knows it, also after a restart of both; None where that is no evidence.

        The node gives the purchase up if it was not accepted: a quote that may still be taken must not be asked about.

        Raises:
            UpstreamError: it did not answer; UNIMPLEMENTED where the daemon is no node of lcp-gateway.
        """
        daemon = await self._daemon_now(timeout_s)
        if not daemon.info.software.looks_payments_up:
            raise UpstreamError(UpstreamStatus.UNIMPLEMENTED, "the daemon keeps no payments")
        request = payment_request(job_id, payment_hash)
        try:
            answer = await self._transport.unary(
                GET_PAYMENT, request, timeout_s, self._present_metadata(), on=daemon.connection
            )
        except RpcError as error:
            raise self._failure("GetPayment", error, daemon.dialect.version, for_client=True) from error
        return read_payment(answer, payment_hash)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._transport.close()

    def _present_metadata(self) -> Metadata:
        """Return the operator's metadata and where the call is traced, which a daemon that does not trace lets be."""
        traced = self._tracing.headers()
        if not traced:
            return self._metadata
        return (*self._metadata, *(p for p in traced.items() if p[0] not in self._own_names))

    def _limits(self, quote: Quote) -> Metadata:
        return limits_metadata(quote.price_msat, self._fee_limit_msat)

    def _known(self) -> _Daemon | None:
        """Return the daemon of the connection in use, where that can be told without waiting."""
        known = self._daemon
        return known if known is not None and known.connection is self._transport.connection else None

    async def _daemon_now(self, timeout_s: float) -> _Daemon:
        """Return the daemon of the connection in use, which is asked for its version once a connection.

        Raises:
            UpstreamError: it cannot be reached, did not answer, or speaks an unknown version.
        """
        known = self._daemon
        if known is not None and known.connection is await self._connect(timeout_s):
            return known
        return await self._ask_daemon(timeout_s)

    async def _daemon_of(self, quote: Quote, timeout_s: float) -> tuple[_Daemon, float]:
        """Return the daemon that a quote may be accepted on, and the seconds left; the call goes out on its connection or not at all.

        Raises:
            UpstreamError: there is none; nothing was paid.
        """
        daemon = self._known()
        if daemon is None:
            deadline = time.monotonic() + timeout_s
            try:
                daemon = await self._retried(self._daemon_now, timeout_s)
            except UpstreamError as error:
                error.evidence = Verdict.NONE
                raise
            timeout_s = _left_s(deadline)
        version = daemon.dialect.version
        if version != quote.protocol_version:
            # The calls that accept are the same on the wire: the other version would pay, and its result be misread.
            raise UpstreamError(
                UpstreamStatus.ABORTED,
                f"the quote is of LCP protocol version {quote.protocol_version}, and the daemon was exchanged for one of "
                f"version {version}; nothing was paid",
                retryable=True,
                evidence=Verdict.NONE,
            )
        return daemon, timeout_s

    async def _ask_daemon(self, timeout_s: float) -> _Daemon:
        connection = await self._connect(timeout_s)
        answer = await self._send("GetLocalInfo", b"", timeout_s, connection, 0)
        # What is read here has the same fields in every version.
        message = read(pb.GetLocalInfoResponse, answer)
        version = message.manifest.protocol_version
        dialect = DIALECTS.get(version)
        if dialect is None:
            self._daemon = None
            raise UnsupportedVersion(version, DIALECTS)
        info = LocalInfo(message.node_id, version, read_software(message.software))
        before, self._daemon = self._daemon, _Daemon(connection, info, dialect)
        if before is None or before.dialect is not dialect or before.info.software != info.software:
            self._on_daemon(info)
        return self._daemon

    async def _connect(self, timeout_s: float) -> object:
        try:
            return await self._transport.connect(timeout_s)
        except RpcError as error:
            raise self._failure("GetLocalInfo", error, 0, for_client=True) from error

    async def _send(
        self, method: str, request: bytes, timeout_s: float, connection: object, version: int, limits: Metadata = ()
    ) -> bytes:
        """Make a call to a daemon of a version (0 where it is not known), one that pays where it has ``limits``."""
        metadata = self._present_metadata()
        if limits:
            metadata = (*metadata, *limits)
        try:
            return await self._transport.unary(_SERVICE + method, request, timeout_s, metadata, on=connection)
        except RpcError as error:
            raise self._failure(method, error, version, for_client=not limits) from error

    async def _retried(self, call: Callable[[float], Awaitable[T]], timeout_s: float) -> T:
        """Make a call that costs nothing; what passes quickly is tried again within ``timeout_s``.

        ``call`` gets the seconds left.
        """
        deadline = time.monotonic() + timeout_s
        try:
            # The first try pays for no retrying: most calls succeed.
            return await call(timeout_s)
        except UpstreamError as error:
            if not is_transient(error):
                raise
        # Imported where it is used: hardly any call is tried again.
        import tenacity  # noqa: PLC0415

        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=0.5, jitter=0.05),
            stop=tenacity.stop_after_attempt(4) | tenacity.stop_after_delay(timeout_s),
            reraise=True,
        )
        async for attempt in again:
            with attempt:
                return await call(_left_s(deadline))
        raise AssertionError("tenacity ends by returning or raising")

    def _failure(self, method: str, error: RpcError, version: int, *, for_client: bool) -> UpstreamError:
        self._on_error(method, error.status)
        return upstream_error(error, version, for_client=for_client, payment=report_of_failure(error))


def _left_s(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def open_transport(address: LcpdAddress) -> Transport:
    """Return the transport that an address asks for.

    Raises:
        OSError: a TLS file cannot be read.
        ValueError: the address is malformed.
    """
    # Each is imported where it is used: grpcio takes 9 MiB and a quarter of a second's CPU.
    wanted = address.transport is TransportKind.DIRECT
    if wanted or (address.transport is TransportKind.AUTO and address.tls is None):
        from lcp_gateway.upstreams.lcpd.endpoint import Endpoint  # noqa: PLC0415
        from lcp_gateway.upstreams.lcpd.http2_transport import DirectTransport  # noqa: PLC0415

        endpoint = Endpoint.of(address)
        if wanted or endpoint.is_local:
            return DirectTransport(endpoint)
    from lcp_gateway.upstreams.lcpd.grpcio_transport import GrpcioTransport  # noqa: PLC0415 - as above

    return GrpcioTransport(address)
