"""LCPDService of version 3: calls of a method with params of any kind. Its paths are those of version 2."""

from collections.abc import Sequence
from typing import Final

from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as pb
from lcp_gateway.node.lcp.buying_events import Order
from lcp_gateway.node.lcp.messages import IDENTITY, Manifest, Protocol, QuoteResponse, TaskTemplate
from lcp_gateway.node.rpc.dialect import (
    STATUS_NUMBERS,
    JobCall,
    QuoteCall,
    check_accept,
    check_cancel,
    check_peer_id,
    expiry_of,
    invalid,
    parse,
)
from lcp_gateway.node.rpc.reports import SOFTWARE, report_message
from lcp_gateway.node.runtime.calls import Delivered, LocalInfo, PaymentReport, ReadyPeer

_FILLED: Final = ("method", "request_bytes", "request_content_type", "request_content_encoding")


class DialectV03:
    """Reads and writes the messages of version 3; what reads a request raises ``CallFailed`` for one that is malformed."""

    protocol = Protocol.V03

    def write_peers(self, peers: Sequence[ReadyPeer]) -> bytes:
        """Write the answer of ListLCPPeers."""
        return pb.ListLCPPeersResponse(
            peers=[
                pb.LCPPeer(peer_id=it.peer_id, address=it.address, remote_manifest=_manifest(it.manifest))
                for it in peers
            ]
        ).SerializeToString()

    def write_info(self, info: LocalInfo) -> bytes:
        """Write the answer of GetLocalInfo."""
        return pb.GetLocalInfoResponse(
            node_id=info.node_id, manifest=_manifest(info.manifest), software=SOFTWARE if info.has_extensions else None
        ).SerializeToString()

    def read_quote_request(self, request: bytes) -> QuoteCall:
        """Read the request of RequestQuote. Method, params and request are the seller's to judge."""
        message = parse(pb.RequestQuoteRequest, request)
        check_peer_id(message.peer_id)
        call = message.call
        for field in _FILLED:
            value: str | bytes = getattr(call, field)
            if not value:
                unit = "bytes" if isinstance(value, bytes) else "characters"
                raise invalid(f"call.{field}", f"value length must be at least 1 {unit}")
        if call.request_content_encoding != IDENTITY:
            raise invalid("call.request_content_encoding", f"this node sends requests as {IDENTITY} only")
        order = Order(
            task_kind=call.method,
            params=call.params or None,
            request=call.request_bytes,
            content_type=call.request_content_type,
            params_content_type=call.params_content_type or None,
        )
        return QuoteCall(message.peer_id, order)

    def write_quote(self, peer_id: str, quote: QuoteResponse) -> bytes:
        """Write the answer of RequestQuote."""
        return pb.RequestQuoteResponse(
            peer_id=peer_id,
            quote=pb.Quote(
                protocol_version=quote.protocol_version,
                call_id=quote.job_id,
                price_msat=quote.price_msat,
                quote_expiry=expiry_of(quote),
                terms_hash=quote.terms_hash,
                payment_request=quote.payment_request,
                response_content_type=quote.response_content_type,
                response_content_encoding=quote.response_content_encoding,
            ),
        ).SerializeToString()

    def read_accept(self, request: bytes) -> JobCall:
        """Read the request of AcceptAndExecute and AcceptAndExecuteStream."""
        message = parse(pb.AcceptAndExecuteRequest, request)
        return check_accept("call_id", message.peer_id, message.call_id, pay_invoice=message.pay_invoice)

    def write_whole(self, delivered: Delivered, body: bytes) -> bytes:
        """Write the answer of AcceptAndExecute."""
        return pb.AcceptAndExecuteResponse(complete=_complete(delivered, body)).SerializeToString()

    def write_begin(self, content_type: str, content_encoding: str, payment: PaymentReport | None) -> bytes:
        """Write the first event of a streamed response."""
        return pb.AcceptAndExecuteStreamResponse(
            response_begin=pb.ResponseStreamBegin(
                content_type=content_type, content_encoding=content_encoding, payment=report_message(payment)
            )
        ).SerializeToString()

    def write_chunk(self, data: bytes) -> bytes:
        """Write an event with bytes of a response."""
        return pb.AcceptAndExecuteStreamResponse(response_chunk=pb.ResponseStreamChunk(data=data)).SerializeToString()

    def write_end(self, sha256: bytes, length: int) -> bytes:
        """Write the event after the last bytes."""
        return pb.AcceptAndExecuteStreamResponse(
            response_end=pb.ResponseStreamEnd(response_hash=sha256, response_len=length)
        ).SerializeToString()

    def write_result(self, delivered: Delivered) -> bytes:
        """Write the last event; the bytes have gone before it."""
        return pb.AcceptAndExecuteStreamResponse(complete=_complete(delivered, b"")).SerializeToString()

    def read_cancel(self, request: bytes) -> JobCall:
        """Read the request of CancelJob."""
        message = parse(pb.CancelJobRequest, request)
        return check_cancel("call_id", message.peer_id, message.call_id, message.reason)

    def write_cancelled(self) -> bytes:
        """Write the answer of CancelJob."""
        return pb.CancelJobResponse(success=True).SerializeToString()


def _complete(delivered: Delivered, body: bytes) -> pb.Complete:
    made = pb.Complete(
        status=pb.Complete.Status.ValueType(STATUS_NUMBERS.get(delivered.ended.outcome, 0)),
        response_bytes=body,
        payment=report_message(delivered.payment),
    )
    result = delivered.result
    if result is None:
        made.message = delivered.ended.message
        return made
    made.message = result.message or ""
    if result.stream_id is not None:
        # The five fields come together.
        made.response_stream_id = result.stream_id
        made.response_hash = result.sha256 or b""
        made.response_len = result.total_len or 0
        made.response_content_type = result.content_type or ""
        made.response_content_encoding = result.content_encoding or ""
    return made


def _manifest(manifest: Manifest) -> pb.LCPManifest:
    return pb.LCPManifest(
        protocol_version=manifest.protocol_version,
        max_payload_bytes=manifest.max_payload_bytes,
        supported_methods=[_method(task) for task in manifest.tasks],
        max_stream_bytes=manifest.max_stream_bytes,
        max_call_bytes=manifest.max_job_bytes,
        max_inflight_calls=manifest.max_inflight_jobs or 0,
    )


def _method(task: TaskTemplate) -> pb.MethodDescriptor:
    return pb.MethodDescriptor(
        method=task.task_kind,
        request_content_types=task.request_content_types,
        response_content_types=task.response_content_types,
        docs_uri=task.docs_uri,
        docs_sha256=task.docs_sha256,
        policy_notice=task.policy_notice,
    )
