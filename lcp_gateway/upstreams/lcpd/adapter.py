"""The adapter to ``lcpd-grpcd``: all code that depends on the messages of protocol version 2."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol, Self, TypeVar

from google.protobuf.message import DecodeError

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import ChunkSink, Result, ResultStatus, StreamBegin, StreamEnd, StreamEvent
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, Tracing
from lcp_gateway.routing.catalog import Provider, merge_kinds
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.grpc_status import is_transient, upstream_error
from lcp_gateway.upstreams.lcpd.payment_report import limits_metadata, read_report, report_of_failure
from lcp_gateway.upstreams.lcpd.transport import (
    MAX_RECEIVE_BYTES,
    LcpdAddress,
    Metadata,
    RpcError,
    Transport,
    TransportKind,
)

SUPPORTED_VERSIONS = frozenset({2})
_HASH_BYTES = 32
_MAX_REASON_CHARS = 256
_MAX_RESULT_BYTES = 32 * 1024 * 1024
"""The largest result in one piece, whatever its peer's manifest allows: it is held in memory."""
_NO_LIMIT = 2**63
_PEERS_AT_ONCE = 4
_MAX_MODELS = 512
# Of all peers together, in equal parts, but for a few that each may have.
_MAX_MODELS_IN_ALL = 8_192
_FEW_MODELS = 64
_MAX_MODEL_CHARS = 256
_PEER_ID = re.compile(r"0[23][0-9a-f]{64}")
# The text of gRPC's own library for a message that came and was not accepted.
_TOO_LARGE = re.compile(rf"\bReceived message larger than max \(\d+ vs\. {MAX_RECEIVE_BYTES}\)")
_SERVICE = "/lcpd.v1.LCPDService/"


class _Message(Protocol):
    """A generated protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name

    @classmethod
    def FromString(cls, data: bytes) -> Self: ...  # noqa: N802 - protobuf's name


_Answer = TypeVar("_Answer", bound=_Message)

_STATUSES = {
    pb.Result.STATUS_OK: ResultStatus.OK,
    pb.Result.STATUS_FAILED: ResultStatus.FAILED,
    pb.Result.STATUS_CANCELLED: ResultStatus.CANCELLED,
}
_KINDS = {
    pb.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1: TaskKind.CHAT_COMPLETIONS,
    pb.LCP_TASK_KIND_OPENAI_RESPONSES_V1: TaskKind.RESPONSES,
}


class UnsupportedVersion(UpstreamError):
    """The daemon speaks a protocol version that this adapter does not know."""

    def __init__(self, version: int) -> None:
        known = ", ".join(str(v) for v in sorted(SUPPORTED_VERSIONS))
        super().__init__(
            UpstreamStatus.FAILED_PRECONDITION,
            f"the daemon speaks LCP protocol version {version}; this gateway knows version {known}",
        )
        self.version = version


@dataclass(frozen=True, slots=True)
class LocalInfo:
    """The daemon's identity: its node's public key (66 hex digits) and its protocol version."""

    node_id: str
    protocol_version: int


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
        tracing: Tracing = NO_TRACING,
        transport: Transport | None = None,
        fee_limit_msat: int = 0,
    ) -> None:
        """``on_error`` gets the names of the method and the status of every call that fails.

        ``on_odd_peer`` gets, once, a peer that is listed in part or not at all, and the reason. ``transport`` leads to a daemon
        in this process, None to the address. A daemon that is a node of lcp-gateway pays no routing fee above ``fee_limit_msat``;
        0 leaves the limit to it.
        """
        self._transport = open_transport(address) if transport is None else transport
        self._fee_limit_msat = fee_limit_msat
        self._metadata = address.metadata
        self._own_names = frozenset(name.lower() for name, _ in address.metadata)
        self._on_error = on_error
        self._on_odd_peer = on_odd_peer
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
        answer = await self._retried("GetLocalInfo", pb.GetLocalInfoResponse, pb.GetLocalInfoRequest(), timeout_s)
        version = answer.manifest.protocol_version
        if version not in SUPPORTED_VERSIONS:
            raise UnsupportedVersion(version)
        return LocalInfo(answer.node_id, version)

    async def list_peers(self, timeout_s: float) -> tuple[Provider, ...]:
        """Return the peers that are connected and ready, in the daemon's order."""
        answer = await self._retried("ListLCPPeers", pb.ListLCPPeersResponse, pb.ListLCPPeersRequest(), timeout_s)
        odd: set[tuple[str, str]] = set()
        providers = []
        most = min(_MAX_MODELS, max(_FEW_MODELS, _MAX_MODELS_IN_ALL // max(1, len(answer.peers))))
        for number, peer in enumerate(answer.peers, start=1):
            if number % _PEERS_AT_ONCE == 0:
                # Each may have hundreds of models: requests run in between.
                await asyncio.sleep(0)
            if not _PEER_ID.fullmatch(peer.peer_id):
                odd.add(("", "its id is no public key (66 hexadecimal digits): it is left out"))
                continue
            provider, problems = _provider(peer, most)
            providers.append(provider)
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
        request = pb.RequestQuoteRequest(peer_id=peer_id, task=_task_message(task))
        answer = await self._retried("RequestQuote", pb.RequestQuoteResponse, request, timeout_s)
        return _quote(peer_id, answer)

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:  # noqa: ARG002 - the daemon has kept the task since it was quoted
        """Pay and wait for the whole result. Goes out once."""
        request = pb.AcceptAndExecuteRequest(peer_id=quote.peer_id, job_id=quote.job_id, pay_invoice=True)
        try:
            answer = await self._once(
                "AcceptAndExecute", pb.AcceptAndExecuteResponse, request, timeout_s, limits=self._limits(quote)
            )
        except UpstreamError as error:
            if _TOO_LARGE.search(error.message):
                # The daemon answers with a result only once it is paid.
                raise _too_long(_MAX_RESULT_BYTES) from error
            raise
        limit = min(_MAX_RESULT_BYTES, self._result_limits.get(quote.peer_id, _NO_LIMIT))
        if len(answer.result.result) > limit:
            raise _too_long(limit)
        return _result(answer.result)

    async def execute_stream(
        self,
        quote: Quote,
        task: Task,  # noqa: ARG002 - as above
        timeout_s: float,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Pay and yield the result as it comes. Goes out once."""
        request = pb.AcceptAndExecuteStreamRequest(peer_id=quote.peer_id, job_id=quote.job_id, pay_invoice=True)
        call = self._transport.stream(
            _SERVICE + "AcceptAndExecuteStream",
            request.SerializeToString(),
            timeout_s,
            (*self._present_metadata(), *self._limits(quote)),
        )
        begun = False
        chunks = _Chunks(self._result_limits.get(quote.peer_id, _NO_LIMIT))
        call.hand_to(chunks.take)
        try:
            # More is read when what came has been taken: HTTP/2 flow control stops the daemon for us.
            while messages := await call.read():
                # What ends the call before it is evidence of the payment; after it the text is for the client.
                begun = True
                for event in _joined(messages):
                    if isinstance(event, bytes):
                        chunks.count(event)
                        yield event
                    else:
                        yield replace(event, hand_to=chunks.hand_to) if isinstance(event, StreamBegin) else event
        except RpcError as error:
            raise self._failure("AcceptAndExecuteStream", error, for_client=begun) from error
        finally:
            call.cancel()

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Tell the peer that the job's result is no longer wanted."""
        request = pb.CancelJobRequest(peer_id=quote.peer_id, job_id=quote.job_id, reason=reason[:_MAX_REASON_CHARS])
        await self._once("CancelJob", pb.CancelJobResponse, request, timeout_s)

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

    async def _once(
        self, method: str, answer: type[_Answer], request: _Message, timeout_s: float, *, limits: Metadata = ()
    ) -> _Answer:
        """Make a call, one that pays where it has ``limits``."""
        metadata = self._present_metadata()
        if limits:
            metadata = (*metadata, *limits)
        try:
            received = await self._transport.unary(_SERVICE + method, request.SerializeToString(), timeout_s, metadata)
        except RpcError as error:
            raise self._failure(method, error, for_client=not limits) from error
        try:
            return answer.FromString(received)
        except DecodeError:
            raise UpstreamError(UpstreamStatus.INTERNAL, "the daemon's answer is no message of its kind") from None

    async def _retried(self, method: str, answer: type[_Answer], request: _Message, timeout_s: float) -> _Answer:
        """Make a call that costs nothing; what passes quickly is tried again within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        try:
            # The first try pays for no retrying: most calls succeed.
            return await self._once(method, answer, request, timeout_s)
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
                left_s = max(deadline - time.monotonic(), 0.001)
                return await self._once(method, answer, request, left_s)
        raise AssertionError("tenacity ends by returning or raising")

    def _failure(self, method: str, error: RpcError, *, for_client: bool) -> UpstreamError:
        self._on_error(method, error.status)
        return upstream_error(error, for_client=for_client, payment=report_of_failure(error))


def open_transport(address: LcpdAddress) -> Transport:
    """Return the transport that an address asks for.

    Raises:
        OSError: a TLS file cannot be read.
        ValueError: the address is malformed.
    """
    # Each is imported where it is used: grpcio takes 9 MiB and a quarter of a second's CPU.
    wanted = address.transport is TransportKind.DIRECT
    if wanted or (address.transport is TransportKind.AUTO and address.tls is None):
        from lcp_gateway.upstreams.lcpd.http2_transport import DirectTransport, Endpoint  # noqa: PLC0415

        endpoint = Endpoint.of(address)
        if wanted or endpoint.is_local:
            return DirectTransport(endpoint)
    from lcp_gateway.upstreams.lcpd.grpcio_transport import GrpcioTransport  # noqa: PLC0415 - as above

    return GrpcioTransport(address)


def _task_message(task: Task) -> pb.Task:
    match task.kind:
        case TaskKind.CHAT_COMPLETIONS:
            return pb.Task(
                openai_chat_completions_v1=pb.OpenAIChatCompletionsV1TaskSpec(
                    request_json=task.body, params=pb.OpenAIChatCompletionsV1Params(model=task.model)
                )
            )
        case TaskKind.RESPONSES:
            return pb.Task(
                openai_responses_v1=pb.OpenAIResponsesV1TaskSpec(
                    request_json=task.body, params=pb.OpenAIResponsesV1Params(model=task.model)
                )
            )
        case _:
            # Routing finds no peer for it, unless the operator named one for its model.
            raise UpstreamError(
                UpstreamStatus.UNIMPLEMENTED, "Lightning peers do not take tasks of this kind; nothing was paid"
            )


def _quote(peer_id: str, answer: pb.RequestQuoteResponse) -> Quote:
    terms = answer.terms
    if terms.protocol_version not in SUPPORTED_VERSIONS:
        # A daemon that was exchanged for another while we were connected.
        raise UnsupportedVersion(terms.protocol_version)
    if len(terms.job_id) != _HASH_BYTES or len(terms.terms_hash) != _HASH_BYTES:
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "the quote's job id or terms hash is not 32 bytes long")
    try:
        expires_at = datetime.fromtimestamp(terms.quote_expiry.seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "the quote's expiry is no possible time") from None
    if answer.peer_id not in {"", peer_id}:
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "the quote comes from another peer than the one asked")
    return Quote(
        peer_id=peer_id,
        job_id=terms.job_id,
        price_msat=Msat(terms.price_msat),
        expires_at=expires_at,
        terms_hash=terms.terms_hash,
        payment_request=terms.payment_request,
        protocol_version=terms.protocol_version,
    )


def _result(message: pb.Result) -> Result:
    return Result(
        status=_STATUSES.get(message.status, ResultStatus.UNSPECIFIED),
        body=message.result,
        sha256=message.result_hash,
        length=message.result_len,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        message=message.message,
        payment=read_report(message.payment),
    )


class _Chunks:
    """The chunks of one result: counted against their peer's limit, and offered to a sink as they come."""

    __slots__ = ("_left", "_limit", "_sink")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._sink: ChunkSink | None = None

    def hand_to(self, sink: ChunkSink) -> None:
        self._sink = sink

    def count(self, chunk: bytes) -> None:
        """Count a chunk that comes as an event.

        Raises:
            UpstreamError: the result is too long.
        """
        self._left -= len(chunk)
        if self._left < 0:
            raise _too_long(self._limit)

    def take(self, messages: list[bytes]) -> bool:
        """Hand the chunks in ``messages`` to the sink, as one; return False where other events are among them."""
        sink = self._sink
        if sink is None:
            return False
        parts: list[bytes] = []
        for message in messages:
            try:
                event = pb.AcceptAndExecuteStreamResponse.FromString(message)
            except DecodeError:
                return False
            if not event.HasField("result_chunk"):
                return False
            parts.append(event.result_chunk.data)
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(chunk) > self._left or not sink(chunk):
            return False
        self._left -= len(chunk)
        return True


def _joined(messages: Sequence[bytes]) -> Iterator[StreamEvent]:
    """Return what messages say, in order; neighbouring chunks of the result as one."""
    chunks: list[bytes] = []
    for message in messages:
        try:
            event = pb.AcceptAndExecuteStreamResponse.FromString(message)
        except DecodeError:
            if chunks:
                yield b"".join(chunks)
            raise UpstreamError(UpstreamStatus.DATA_LOSS, "the daemon sent a stream event of an unknown kind") from None
        if event.HasField("result_chunk"):
            chunks.append(event.result_chunk.data)
            continue
        if chunks:
            yield b"".join(chunks)
            chunks.clear()
        yield _stream_event(event)
    if chunks:
        yield chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _stream_event(message: pb.AcceptAndExecuteStreamResponse) -> StreamEvent:
    match message.WhichOneof("event"):
        case "result_begin":
            begin = message.result_begin
            return StreamBegin(begin.content_type, begin.content_encoding, payment=read_report(begin.payment))
        case "result_end":
            return StreamEnd(message.result_end.result_hash, message.result_end.result_len)
        case "result":
            return _result(message.result)
        case _:
            raise UpstreamError(UpstreamStatus.DATA_LOSS, "the daemon sent a stream event of an unknown kind")


def _too_long(limit: int) -> UpstreamError:
    return UpstreamError(
        UpstreamStatus.DATA_LOSS,
        f"the result is longer than its peer may send ({limit} bytes)",
        evidence=Verdict.SETTLED,
    )


def _provider(peer: pb.LCPPeer, most_models: int) -> tuple[Provider, Sequence[str]]:
    """Return a peer as a provider, and the parts that were left out."""
    manifest = peer.remote_manifest
    offers: list[tuple[TaskKind, str]] = []
    problems: dict[str, None] = {}
    names: set[str] = set()
    for template in manifest.supported_tasks:
        kind = _KINDS.get(template.kind)
        if kind is TaskKind.CHAT_COMPLETIONS:
            model = template.openai_chat_completions_v1.model
        elif kind is TaskKind.RESPONSES:
            model = template.openai_responses_v1.model
        else:
            continue
        if len(model) > _MAX_MODEL_CHARS:
            problems[f"models with names above {_MAX_MODEL_CHARS} characters are left out"] = None
        elif model not in names and len(names) >= most_models:
            problems[f"models after the first {most_models} are left out"] = None
            break
        elif model:
            names.add(model)
            offers.append((kind, model))
    return Provider(
        peer_id=peer.peer_id,
        address=peer.address,
        protocol_version=manifest.protocol_version,
        models=merge_kinds(offers),
        max_payload_bytes=manifest.max_payload_bytes,
        max_stream_bytes=manifest.max_stream_bytes,
        max_job_bytes=manifest.max_job_bytes,
        max_inflight_jobs=manifest.max_inflight_jobs,
    ), tuple(problems)
