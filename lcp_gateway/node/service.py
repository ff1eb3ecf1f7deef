"""The LCPDService: the implementation of each call."""

import asyncio
import time
from collections import Counter
from typing import Any, NoReturn

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lcp_gateway._gen.lcpd import lcpd_pb2, lcpd_pb2_grpc
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.compute.backend import ResultEnd
from lcp_gateway.node.config import NodeConfig, derive_key, public_id
from lcp_gateway.node.events import EventKind, EventLog
from lcp_gateway.node.execution import Executor
from lcp_gateway.node.faults import Fault, FaultScript, Stage, wait_forever
from lcp_gateway.node.jobs import Job, JobPayment, Jobs
from lcp_gateway.node.peers import Peers
from lcp_gateway.node.quoting import Quoter
from lcp_gateway.node.status import CallError, failed_precondition, invalid, lcp_error
from lcp_gateway.node.tasks import Task, read_task
from lcp_gateway.node.wallets import Wallet

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_REASON_CHARACTERS = 256
_NODE_LIMITS = (16_384, 4 * 1024 * 1024, 8 * 1024 * 1024, 4_096)


class LcpdService(lcpd_pb2_grpc.LCPDServiceServicer):
    """Serves the daemon's calls out of a node's parts."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        peers: Peers,
        jobs: Jobs,
        wallet: Wallet,
        quoter: Quoter,
        executor: Executor,
        script: FaultScript,
        events: EventLog,
    ) -> None:
        self._config = config
        self._peers = peers
        self._jobs = jobs
        self._wallet = wallet
        self._quoter = quoter
        self._executor = executor
        self._script = script
        self._events = events
        self._manifest_refusals: Counter[str] = Counter()
        self._info = _local_info(config)

    async def ListLCPPeers(  # noqa: N802 - named by the protocol
        self, request: lcpd_pb2.ListLCPPeersRequest, context: Context
    ) -> lcpd_pb2.ListLCPPeersResponse:
        """Return the peers that are ready."""
        del request, context
        return lcpd_pb2.ListLCPPeersResponse(peers=[peer.description for peer in self._peers if peer.ready])

    async def GetLocalInfo(  # noqa: N802 - named by the protocol
        self, request: lcpd_pb2.GetLocalInfoRequest, context: Context
    ) -> lcpd_pb2.GetLocalInfoResponse:
        """Return this node's identity and protocol version."""
        del request, context
        return self._info

    async def RequestQuote(  # noqa: N802 - named by the protocol
        self, request: lcpd_pb2.RequestQuoteRequest, context: Context
    ) -> lcpd_pb2.RequestQuoteResponse:
        """Price a task."""
        try:
            return await self._quote(request)
        except CallError as error:
            await abort(context, error, self._config.protocol_version)

    async def AcceptAndExecute(  # noqa: N802 - named by the protocol
        self, request: lcpd_pb2.AcceptAndExecuteRequest, context: Context
    ) -> lcpd_pb2.AcceptAndExecuteResponse:
        """Pay a quote and return the whole result."""
        sink = _WholeSink()
        try:
            end = await self._accept(request, sink)
        except CallError as error:
            await abort(context, error, self._config.protocol_version)
        if end is None or not end.sent:
            return lcpd_pb2.AcceptAndExecuteResponse()
        ok = end.status == lcpd_pb2.Result.STATUS_OK
        return lcpd_pb2.AcceptAndExecuteResponse(result=_result(end, b"".join(sink.chunks) if ok else b""))

    async def AcceptAndExecuteStream(  # type: ignore[override]  # noqa: N802 - named by the protocol; the stub knows only generators, and writing costs less
        self, request: lcpd_pb2.AcceptAndExecuteStreamRequest, context: Context
    ) -> None:
        """Pay a quote and send the result as it is computed."""
        try:
            end = await self._accept(request, _StreamSink(context))
        except CallError as error:
            await abort(context, error, self._config.protocol_version)
        if end is None or not end.sent:
            return
        if end.status == lcpd_pb2.Result.STATUS_OK:
            await context.write(
                lcpd_pb2.AcceptAndExecuteStreamResponse(
                    result_end=lcpd_pb2.ResultStreamEnd(result_hash=end.sha256, result_len=end.length)
                )
            )
        await context.write(lcpd_pb2.AcceptAndExecuteStreamResponse(result=_result(end, b"")))

    async def CancelJob(  # noqa: N802 - named by the protocol
        self, request: lcpd_pb2.CancelJobRequest, context: Context
    ) -> lcpd_pb2.CancelJobResponse:
        """Stop a job's compute. Its payment stands, and the call that waits for its result goes on waiting."""
        try:
            if len(request.reason) > _MAX_REASON_CHARACTERS:
                raise invalid("reason is longer than 256 characters")
            job = self._jobs.find(self._peers.connected(request.peer_id), request.job_id)
        except CallError as error:
            await abort(context, error, self._config.protocol_version)
        self._events.record_job(EventKind.CANCEL, job)
        job.cancelled = True
        if job.runner is not None:
            job.runner.cancel()
        return lcpd_pb2.CancelJobResponse(success=True)

    async def _quote(self, request: lcpd_pb2.RequestQuoteRequest) -> lcpd_pb2.RequestQuoteResponse:
        task = read_task(request.task)
        peer = self._peers.connected(request.peer_id)
        peer.check_room(task)
        model = peer.model_for(task)
        fault = self._script.next(Stage.QUOTE, task.model)
        if fault is not None:
            await self._refuse_quote(fault, task)
        if peer.config.quote_latency_s > 0:
            await asyncio.sleep(peer.config.quote_latency_s)
        quote = self._quoter.quote(peer, model, task, fault)
        self._jobs.add(quote.job)
        self._events.record_job(EventKind.QUOTE, quote.job)
        return lcpd_pb2.RequestQuoteResponse(
            peer_id=peer.id,
            terms=lcpd_pb2.Terms(
                protocol_version=quote.protocol_version,
                job_id=quote.job.id,
                price_msat=quote.job.price_msat,
                quote_expiry=Timestamp(seconds=quote.job.expires_at),
                terms_hash=quote.terms_hash,
                payment_request=quote.payment_request,
            ),
        )

    async def _refuse_quote(self, fault: Fault, task: Task) -> None:
        if fault.code is not None:
            raise CallError(fault.code, "scripted failure at the quote")
        if fault.name == "quote-refused":
            raise lcp_error(ErrorCode.RATE_LIMITED, "scripted refusal")
        if fault.name == "quote-slow":
            await wait_forever()
        if fault.name == "manifest-not-exchanged":
            self._manifest_refusals[task.model] += 1
            if self._manifest_refusals[task.model] <= self._config.fault_settings.manifest_refusals:
                raise lcp_error(ErrorCode.INVALID_STATE, "manifest not exchanged")

    async def _accept(
        self,
        request: lcpd_pb2.AcceptAndExecuteRequest | lcpd_pb2.AcceptAndExecuteStreamRequest,
        sink: "_WholeSink | _StreamSink",
    ) -> ResultEnd | None:
        """Check, pay and run a job, in the daemon's order."""
        job = self._jobs.find(self._peers.connected(request.peer_id), request.job_id)
        self._events.record_job(EventKind.ACCEPT, job)
        if not request.pay_invoice:
            raise invalid("pay_invoice must be true")
        job.fault = self._script.next(Stage.EXECUTE, job.model.name)
        await self._pay(job)
        return await self._executor.run(job, self._jobs.take_task(job), sink)

    async def _pay(self, job: Job) -> None:
        # As at lcpd-grpcd, a job that was paid before goes on to lnd, which knows that.
        if job.payment is JobPayment.NONE and time.time() >= job.expires_at:
            raise failed_precondition("quote expired")
        if job.invoice_problem is not None:
            raise failed_precondition(job.invoice_problem)
        fault = job.fault.name if job.fault is not None else ""
        if fault == "already-paid":
            await self._wallet.pay(job)
        await self._wallet.pay(job, no_route=fault == "no-route")


class _WholeSink:
    """Collects a result; AcceptAndExecute sends it in one message."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    async def begin(self, content_type: str, content_encoding: str) -> None:
        """The head travels with the result."""

    async def chunk(self, data: bytes) -> None:
        self.chunks.append(data)


class _StreamSink:
    """Writes a result to a call; a write waits until the transport has taken it, so a slow reader slows the backend."""

    def __init__(self, context: Context) -> None:
        self._write = context.write

    async def begin(self, content_type: str, content_encoding: str) -> None:
        """Send the head."""
        await self._write(
            lcpd_pb2.AcceptAndExecuteStreamResponse(
                result_begin=lcpd_pb2.ResultStreamBegin(content_type=content_type, content_encoding=content_encoding)
            )
        )

    async def chunk(self, data: bytes) -> None:
        """Send the bytes as one chunk."""
        await self._write(lcpd_pb2.AcceptAndExecuteStreamResponse(result_chunk=lcpd_pb2.ResultStreamChunk(data=data)))


async def abort(context: Context, error: CallError, protocol_version: int) -> NoReturn:
    """End a call with an error, in the words of a version of the protocol."""
    await context.abort(error.code, error.text(protocol_version))
    raise AssertionError  # abort does not return


def _result(end: ResultEnd, body: bytes) -> lcpd_pb2.Result:
    if end.status != lcpd_pb2.Result.STATUS_OK:
        return lcpd_pb2.Result(status=end.status, message=end.message)
    return lcpd_pb2.Result(
        status=end.status,
        result=body,
        result_hash=end.sha256,
        result_len=end.length,
        content_type=end.content_type,
        content_encoding=end.content_encoding,
        message=end.message,
    )


def _local_info(config: NodeConfig) -> lcpd_pb2.GetLocalInfoResponse:
    payload, stream, job, inflight = _NODE_LIMITS
    return lcpd_pb2.GetLocalInfoResponse(
        node_id=public_id(derive_key(config.seed, "node")),
        manifest=lcpd_pb2.LCPManifest(
            protocol_version=config.protocol_version,
            max_payload_bytes=payload,
            max_stream_bytes=stream,
            max_job_bytes=job,
            max_inflight_jobs=inflight,
        ),
    )
