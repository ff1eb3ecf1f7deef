"""LCPDService of version 2: tasks with their kind and model."""

from collections.abc import Sequence
from typing import Final

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.node.lcp.buying_events import Order
from lcp_gateway.node.lcp.judging import RequestRefused, read_input
from lcp_gateway.node.lcp.manifests import offers
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES, Manifest, Protocol, QuoteResponse
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.lcp.tlv import WireError
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
from lcp_gateway.node.runtime.calls import CallFailed, Delivered, LocalInfo, PaymentReport, ReadyPeer
from lcp_gateway.upstream_status import UpstreamStatus

_KINDS: Final = {"openai_chat_completions_v1": CHAT, "openai_responses_v1": RESPONSES}
_NO_JSON: Final = "input must be valid json"


class DialectV02:
    """Reads and writes the messages of version 2; what reads a request raises ``CallFailed`` for one that is malformed."""

    protocol = Protocol.V02

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
        """Read the request of RequestQuote, and check its JSON as lcpd-grpcd does."""
        message = parse(pb.RequestQuoteRequest, request)
        check_peer_id(message.peer_id)
        spec = message.task.WhichOneof("spec")
        if spec is None:
            raise invalid("task.spec", "exactly one field is required in oneof")
        task: pb.OpenAIChatCompletionsV1TaskSpec | pb.OpenAIResponsesV1TaskSpec = getattr(message.task, spec)
        model, kind = task.params.model, _KINDS[spec]
        if not model:
            raise invalid(f"task.{spec}.params.model", "value length must be at least 1 characters")
        try:
            read_input(kind, model, task.request_json)
            params = write_params(model)
        except RequestRefused as refused:
            problem = "request_json must be valid json" if refused.message.endswith(_NO_JSON) else refused.message
            raise CallFailed(UpstreamStatus.INVALID_ARGUMENT, f"{spec}.{problem}") from None
        except WireError as error:
            raise CallFailed(UpstreamStatus.INVALID_ARGUMENT, f"{spec}.params: {error}") from None
        return QuoteCall(message.peer_id, Order(task_kind=kind, params=params, request=task.request_json))

    def write_quote(self, peer_id: str, quote: QuoteResponse) -> bytes:
        """Write the answer of RequestQuote."""
        return pb.RequestQuoteResponse(
            peer_id=peer_id,
            terms=pb.Terms(
                protocol_version=quote.protocol_version,
                job_id=quote.job_id,
                price_msat=quote.price_msat,
                quote_expiry=expiry_of(quote),
                terms_hash=quote.terms_hash,
                payment_request=quote.payment_request,
            ),
        ).SerializeToString()

    def read_accept(self, request: bytes) -> JobCall:
        """Read the request of AcceptAndExecute and AcceptAndExecuteStream."""
        message = parse(pb.AcceptAndExecuteRequest, request)
        return check_accept("job_id", message.peer_id, message.job_id, pay_invoice=message.pay_invoice)

    def write_whole(self, delivered: Delivered, body: bytes) -> bytes:
        """Write the answer of AcceptAndExecute."""
        return pb.AcceptAndExecuteResponse(result=_result(delivered, body)).SerializeToString()

    def write_begin(self, content_type: str, content_encoding: str, payment: PaymentReport | None) -> bytes:
        """Write the first event of a streamed result."""
        return pb.AcceptAndExecuteStreamResponse(
            result_begin=pb.ResultStreamBegin(
                content_type=content_type, content_encoding=content_encoding, payment=report_message(payment)
            )
        ).SerializeToString()

    def write_chunk(self, data: bytes) -> bytes:
        """Write an event with bytes of a result."""
        return pb.AcceptAndExecuteStreamResponse(result_chunk=pb.ResultStreamChunk(data=data)).SerializeToString()

    def write_end(self, sha256: bytes, length: int) -> bytes:
        """Write the event after the last bytes."""
        return pb.AcceptAndExecuteStreamResponse(
            result_end=pb.ResultStreamEnd(result_hash=sha256, result_len=length)
        ).SerializeToString()

    def write_result(self, delivered: Delivered) -> bytes:
        """Write the last event; the bytes have gone before it."""
        return pb.AcceptAndExecuteStreamResponse(result=_result(delivered, b"")).SerializeToString()

    def read_cancel(self, request: bytes) -> JobCall:
        """Read the request of CancelJob."""
        message = parse(pb.CancelJobRequest, request)
        return check_cancel("job_id", message.peer_id, message.job_id, message.reason)

    def write_cancelled(self) -> bytes:
        """Write the answer of CancelJob."""
        return pb.CancelJobResponse(success=True).SerializeToString()


def _result(delivered: Delivered, body: bytes) -> pb.Result:
    made = pb.Result(
        status=pb.Result.Status.ValueType(STATUS_NUMBERS.get(delivered.ended.outcome, 0)),
        result=body,
        payment=report_message(delivered.payment),
    )
    result = delivered.result
    if result is None:
        made.message = delivered.ended.message
        return made
    made.result_hash = result.sha256 or b""
    made.result_len = result.total_len or 0
    made.content_type = result.content_type or ""
    made.content_encoding = result.content_encoding or ""
    made.message = result.message or ""
    return made


def _manifest(manifest: Manifest) -> pb.LCPManifest:
    return pb.LCPManifest(
        protocol_version=manifest.protocol_version,
        max_payload_bytes=manifest.max_payload_bytes,
        supported_tasks=[_template(offer.task_kind, offer.model or "") for offer in offers(Protocol.V02, manifest)],
        max_stream_bytes=manifest.max_stream_bytes,
        max_job_bytes=manifest.max_job_bytes,
        max_inflight_jobs=manifest.max_inflight_jobs or 0,
    )


def _template(kind: str, model: str) -> pb.LCPTaskTemplate:
    if kind == CHAT:
        return pb.LCPTaskTemplate(
            kind=pb.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1,
            openai_chat_completions_v1=pb.OpenAIChatCompletionsV1Params(model=model),
        )
    return pb.LCPTaskTemplate(
        kind=pb.LCP_TASK_KIND_OPENAI_RESPONSES_V1, openai_responses_v1=pb.OpenAIResponsesV1Params(model=model)
    )
